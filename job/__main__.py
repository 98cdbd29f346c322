"""``python -m job``, and so ``deepspeed --module job`` and ``torchrun -m job``.

Python looks for modules in the working directory first: a ``job.py`` there would run instead. The command ``job`` does
not look there, so launchers are better told to start that: ``deepspeed --no_python job``, ``torchrun --no-python job``.
"""

from job.cli import program

program()
