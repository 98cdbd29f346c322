"""The command line: options to configuration, errors to exit codes. Imports torch only inside commands."""

from job.cli.group import main

__all__ = ["main"]
