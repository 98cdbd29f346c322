"""How workers share a run: leases, claims, what each has done, retries."""
