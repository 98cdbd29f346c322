"""Figures of a worker while it works, for Prometheus."""
