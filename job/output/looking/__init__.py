"""Reads and checks a run directory from outside."""
