"""The entry point: of the command ``job``, and of ``python -m job`` as used by ``deepspeed --module job`` and
``torchrun -m job``.

Python looks for modules in the working directory first, so a ``job.py`` there would run instead. The command ``job``
does not look there, so prefer it with launchers: ``deepspeed --no_python job``, ``torchrun --no-python job``.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until ``program`` begins: Ctrl-C in the middle of an import would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from job.cli import program

if __name__ == "__main__":
    program()
