"""What a run directory holds, read and checked from outside."""
