"""How workers share a run: leases, claims, metrics, retries."""
