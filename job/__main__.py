"""``python -m job``, which is also how ``deepspeed --module job`` and ``torchrun -m job`` start it."""

from job.cli import program

program()
