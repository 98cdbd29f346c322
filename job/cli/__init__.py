"""The command line: turns options into a configuration, and errors into exit codes. Only commands import torch."""

from job.cli.group import main, program

__all__ = ["main", "program"]
