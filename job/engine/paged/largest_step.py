"""The memory that the largest step takes on a GPU: found out by running it, before the cache is sized.

The step has as many tokens and wanted logits as any step may have, and no cache: its attention writes nothing. Then
tokens are chosen from the logits of a row each, in the way that takes the most memory, and all logits are scored.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from job.engine.failures import OUT_OF_MEMORY, describe_failure
from job.engine.logits.history import TokenHistory
from job.engine.logits.pipeline import choose
from job.engine.logits.reductions import token_logprobs
from job.engine.logits.sampling import SamplingBatch
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.attention.layout import BlockTables, Layout
from job.engine.paged.executor import run_model
from job.engine.paged.schedule.step import Step, most_wanted, rows
from job.errors import JobError
from job.launch.replica import Replica
from job.tasks import MAX_TEMPERATURE, SamplingParams

FEWEST_TOKENS = 16
"""If not even a step of so few tokens fits, the model is too large."""

HARDEST = SamplingParams(
    temperature=MAX_TEMPERATURE,
    top_p=0.999,
    repetition_penalty=1.5,
    presence_penalty=0.5,
    biases=((0, 1.0),),
    num_top_logprobs=20,
)
"""A flat distribution whose nucleus holds most of the vocabulary, which is therefore sorted; a bias, and every kind of
penalty."""


class DeviceMemory(Protocol):
    """What a device says about its memory."""

    def free_bytes(self) -> int:
        """Return what is free, without what is only kept for reuse."""

    def begin(self) -> None:
        """Start to measure a peak."""

    def peak_bytes(self) -> int:
        """Return the most that was taken at once since ``begin``, on top of what was in use then."""


class CudaMemory:
    """Implements ``DeviceMemory``. It counts what the allocator reserves, and so includes what fragments are lost."""

    def __init__(self, device: torch.device) -> None:
        """Measure this device."""
        self._device, self._before = device, 0

    def free_bytes(self) -> int:
        """See ``DeviceMemory``."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])

    def begin(self) -> None:
        """See ``DeviceMemory``."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_reserved(self._device)

    def peak_bytes(self) -> int:
        """See ``DeviceMemory``."""
        return int(torch.cuda.max_memory_reserved(self._device)) - self._before


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestStep:
    """The largest step that fits, and what it takes on this rank."""

    max_rows: int
    max_tokens: int
    forward_bytes: int
    """At most at once while the model runs."""
    choice_bytes: int
    """At most at once while tokens are chosen, the logits included. 0 on followers, which choose none."""


def find_largest_step(
    module: Any, replica: Replica, memory: DeviceMemory, *, max_rows: int, max_tokens: int
) -> LargestStep:
    """Run steps, halving them until one fits. All ranks of a replica must call this together.

    Raises:
        JobError: not even a tiny step fits.
    """
    while True:
        failure, taken = None, (0, 0)
        try:
            taken = _taken(module, replica, memory, max_rows, max_tokens)
        except Exception as error:  # whatever the model's code raises
            failure = describe_failure(error)
        # Outside the except block, where the traceback would keep the tensors of the failed pass alive.
        failures = [status for status in replica.gather_status(failure) if status is not None]
        if not failures:
            forward_bytes, choice_bytes = taken
            return LargestStep(
                max_rows=max_rows, max_tokens=max_tokens, forward_bytes=forward_bytes, choice_bytes=choice_bytes
            )
        if any(status != OUT_OF_MEMORY for status in failures):
            raise JobError(f"The model cannot compute a step of {max_tokens:,} tokens: {failures[0]}.")
        if max_tokens <= FEWEST_TOKENS:
            raise JobError(
                f"After the weights, memory is too short even for steps of {max_tokens} tokens. "
                "Use a larger --tensor-parallel-size, so that each process holds less of the model."
            )
        max_tokens = max(FEWEST_TOKENS, max_tokens // 2)
        max_rows = min(max_rows, max_tokens)


def _taken(module: Any, replica: Replica, memory: DeviceMemory, max_rows: int, max_tokens: int) -> tuple[int, int]:
    """Return the peaks of a step and of its choice."""
    memory.begin()
    # No page is ever read or written, so one that holds any position will do.
    layout = Layout(largest_step(max_rows, max_tokens), BlockTables(max_rows), max_tokens)
    logits = run_model(module, layout, _attend_to_nothing, replica.device)
    forward_bytes = memory.peak_bytes()
    if not replica.info.is_leader:
        return forward_bytes, 0
    memory.begin()
    batch = SamplingBatch(params=[HARDEST] * max_rows, keys=[(0, 0)] * max_rows, positions=[0] * max_rows)
    chosen = logits[:max_rows]
    with torch.inference_mode():
        choose(chosen, batch, TokenHistory(max_rows).of([_Row(slot) for slot in range(max_rows)]))
        choice_bytes = memory.peak_bytes() + chosen.nbytes
        memory.begin()
        token_logprobs(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
    return forward_bytes, max(choice_bytes, memory.peak_bytes() + logits.nbytes)


def largest_step(max_rows: int, max_tokens: int) -> Step:
    """Return a step of ``max_tokens`` tokens in ``max_rows`` sequences, with as many wanted logits as there may be."""
    counts = np.full(max_rows, max_tokens // max_rows)
    counts[-1] += max_tokens % max_rows
    num_wanted = np.minimum(counts, most_wanted(max_rows) // max_rows)
    return Step(
        token_ids=np.zeros(max_tokens, np.int32),
        sequences=rows([(slot, 0, *both) for slot, both in enumerate(zip(counts, num_wanted, strict=True))], 4),
    )


def _attend_to_nothing(
    layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs
) -> torch.Tensor:
    """Implement ``Attend`` with an output of the right shape."""
    return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)


@dataclass(frozen=True, slots=True)
class _Row:
    """Implements ``RowTokens``: a prompt of one token."""

    slot: int
    token_ids: tuple[int, ...] = (0,)
    num_prompt: int = 1
