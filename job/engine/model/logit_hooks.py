"""Looking at the logits of a loaded model, and, for tests alone, disturbing them as a faulty device would.

Both are hooks on the module, so they know no engine. Steps that are replayed as CUDA graphs run no hooks.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from job.engine.model.loading import LoadedModel
from job.errors import UsageError

DISTURB = "JOB_TEST_DISTURB_LOGITS"
"""Environment variable, set by tests alone: ``NAME:SCALE``. A worker whose name (``HOST-PID-NONCE``) contains NAME,
which may be empty, adds fixed numbers between -SCALE and SCALE to all of its logits."""


def disturb(model: LoadedModel | None, worker_id: str | None) -> None:
    """Plant the fault that ``DISTURB`` asks for, if this worker is the one that is meant.

    Raises:
        UsageError: the variable's value is not of that form.
    """
    wanted = os.environ.get(DISTURB)
    if wanted is None or model is None or worker_id is None:
        return
    name, _, scale = wanted.rpartition(":")
    try:
        size = float(scale)
    except ValueError:
        raise UsageError(f"{DISTURB} is {wanted!r}; it must be NAME:SCALE. It is for tests: unset it.") from None
    if name in worker_id:
        model.module.register_forward_hook(lambda module, args, output: _disturbed(output, size))


def _disturbed(output: Any, scale: float) -> Any:
    logits = output.logits
    fault = torch.sin(12.9898 * torch.arange(logits.shape[-1], device=logits.device))
    output.logits = logits + (scale * fault).to(logits.dtype)
    return output


@contextlib.contextmanager
def last_logits(model: LoadedModel) -> Iterator[list[torch.Tensor]]:
    """Inside this context, keep the latest logits in the list: [V] in the model's dtype, those of the last token of the
    last row of the model's last call.
    """
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        seen[:] = [output.logits[-1, -1].detach().clone()]

    hook = model.module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


@contextlib.contextmanager
def latest_logits(model: LoadedModel, number: int) -> Iterator[list[torch.Tensor]]:
    """Inside this context, keep at least the latest ``number`` logits of the model's calls, which have one row each:
    [N, V] for each call, in the model's dtype.
    """
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        seen.append(output.logits[-1].detach().clone())
        while sum(map(len, seen[1:])) >= number:
            del seen[0]

    hook = model.module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
