"""Who puts the stages together: a command from its configuration to its end."""
