"""Puts the stages together: a command from its configuration to its exit code."""
