"""The command line: options to configuration, errors to exit codes. Imports torch only inside commands."""

from job.cli.group import main, program

__all__ = ["main", "program"]
