"""The entry point of ``python -m job``, also used by ``deepspeed --module job`` and ``torchrun -m job``.

Python looks for modules in the working directory first, so a ``job.py`` there would run instead. The command ``job``
does not look there, so prefer it with launchers: ``deepspeed --no_python job``, ``torchrun --no-python job``.
"""

from job.cli import program

program()
