"""Imports DeepSpeed and keeps it off stdout. The only module that imports it."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch


def import_deepspeed(*, verbose: bool = False) -> Any:
    """Import DeepSpeed with its accelerator chosen, its log on stderr, and its CPU all-reduce op switched off.

    The op ``deepspeed_shm_comm`` crashes unless LOCAL_SIZE is the world size, ignores process groups (so replicas would
    sum each other's activations), and needs a C++ compiler. Without it, DeepSpeed uses gloo. It exists on CPUs only.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    with quiet_stdout(verbose=verbose):
        import deepspeed

    for handler in deepspeed.utils.logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
    if not verbose:
        deepspeed.utils.logging.set_log_level_from_string("error")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def quiet_stdout(*, verbose: bool) -> Iterator[None]:
    """Keep ``print`` off stdout, which belongs to the user: output goes to stderr if verbose, else nowhere."""
    with contextlib.redirect_stdout(sys.stderr if verbose else io.StringIO()):
        yield
