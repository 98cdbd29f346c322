"""Runs steps on a GPU: one copy brings a step's numbers, and steps of usual shapes are recorded and replayed.

The host waits for nothing here. Block tables stay on the device, and a step enters the pages that its rows have gained.
The ids of tokens that the device has chosen need not come back to it.

Letters: T tokens, W wanted tokens, V vocabulary, B rows of the last choice.
"""

from bisect import bisect_left
from typing import Any

import torch

from job.engine.paged.attention.cache import KVCache
from job.engine.paged.attention.interface import attending
from job.engine.paged.attention.layout import BlockTables, resolved
from job.engine.paged.cuda.attention import TritonAttention, form_of
from job.engine.paged.cuda.graphs import Graphs, Work
from job.engine.paged.cuda.numbers import (
    Array,
    Form,
    StepNumbers,
    StepShape,
    numbers_of,
    padded,
    padding_of,
)
from job.engine.paged.schedule.step import Step
from job.engine.transfers import Upload, num_bytes
from job.errors import first_line

SIZES = (1, 2, 4, 8, 16, 32, 64, *range(96, 1025, 32))
"""The numbers of rows that decode steps are recorded for."""

TOKEN_SIZES = (64, 128, 256, 384, 512, *range(768, 4097, 256), *range(5120, 16385, 1024))
"""The numbers of tokens that steps with prompts are recorded for."""

MAX_RECORDED_WORK = 4e12
"""Tokens times parameters. A step with prompts of more work takes the device longer (10 ms at 800 TFLOP/s) than the
host needs to launch it, so it is launched as it is, without padding."""


MAX_RECORDED_STEPS = 96
"""More are launched: each takes memory. Decode steps of all sizes and steps with prompts of all sizes are some 80."""


class RecordedStep:
    """A step of one shape: the memory that it reads, and its replay."""

    def __init__(self, padding: StepNumbers[Array], device: torch.device) -> None:
        """Allocate what the step reads; all of it is padding."""
        self.padding, self._upload = padding, Upload(device)
        self._memory = torch.empty(num_bytes(*padding.arrays), dtype=torch.uint8, device=device)
        self.replay: Work | None = None
        self.numbers = self.fill(padding)

    def fill(self, numbers: StepNumbers[Array]) -> StepNumbers[torch.Tensor]:
        """Send a step of this shape or a smaller one, and return its tensors: always the same."""
        arrays = padded(numbers, self.padding).arrays
        return self.padding.like(self._upload(*arrays, into=self._memory))


class DeviceSteps:
    """Implements ``Steps``: see there."""

    def __init__(self, module: Any, cache: KVCache, device: torch.device, *, num_slots: int) -> None:
        """Run a model over a cache. Every step is launched until ``record`` is called."""
        self._module, self._cache, self._device, self._max_rows = module, cache, device, num_slots
        self._tables = torch.zeros(num_slots + 1, cache.num_pages, dtype=torch.int32, device=device)
        self._form: Form = form_of(cache, num_slots, cache.num_pages)
        self._upload = Upload(device)
        self._graphs: Graphs | None = None
        self._recorded: dict[StepShape, RecordedStep] = {}
        self._chosen = torch.zeros(max(num_slots, 1), dtype=torch.int64, device=device)
        self._logits: torch.Tensor | None = None
        self._num_params, self._is_sharded = 0, False
        self._met: set[StepShape] = set()
        self._unrecordable: set[StepShape] = set()

    def record(self, num_params: int, *, is_sharded: bool) -> str | None:
        """See ``Steps``."""
        self._num_params, self._is_sharded = num_params, is_sharded
        try:
            self._graphs = Graphs()
            # The largest first: what it leaves in the pool of memory serves the smaller ones.
            self._record(self._decode_shape(min(self._max_rows, SIZES[-1])))
            self._record(self._decode_shape(1))
        except Exception as error:  # whatever the model does that cannot be recorded
            self.launch_all()
            return first_line(error)
        return None

    def launch_all(self) -> None:
        """See ``Steps``."""
        self._graphs, self._logits = None, None
        self._recorded.clear()

    def run(self, step: Step, tables: BlockTables, chosen: torch.Tensor | None) -> torch.Tensor:
        """See ``Steps``."""
        numbers = numbers_of(step, tables, self._form)
        num_chosen = step.num_chosen
        shape = self._recorded_shape(numbers.shape) if self._graphs is not None else None
        if shape is None or num_chosen > len(self._chosen):
            return self._forward(numbers.like(self._upload(*numbers.arrays)), chosen)
        recorded = self._recorded.get(shape) or self._record_if_frequent(shape)
        if recorded is None:
            return self._forward(numbers.like(self._upload(*numbers.arrays)), chosen)
        recorded.fill(numbers)
        if num_chosen:
            assert chosen is not None
            self._chosen[:num_chosen].copy_(chosen[:num_chosen])
        assert recorded.replay is not None and self._logits is not None
        recorded.replay()
        return self._logits[: numbers.shape.num_wanted]

    def _forward(self, numbers: StepNumbers[torch.Tensor], chosen: torch.Tensor | None) -> torch.Tensor:
        """Return [W, V], from tensors on the device."""
        with torch.inference_mode():
            lines, pages = numbers.gained
            self._tables.view(-1).index_copy_(0, lines.long(), pages)
            token_ids = numbers.token_ids if chosen is None else resolved(numbers.token_ids, chosen)
            with attending(TritonAttention(self._cache, numbers, self._tables)):
                output = self._module(
                    # In the dtypes that the model was checked with.
                    input_ids=token_ids.long()[None],
                    position_ids=numbers.positions.long()[None],
                    use_cache=False,
                    logits_to_keep=numbers.wanted,
                )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _record_if_frequent(self, shape: StepShape) -> RecordedStep | None:
        """Record a shape that is met for the second time. None: this step must be launched.

        No row is to blame if a shape cannot be recorded, for example since memory is short: it is launched forever.
        """
        if shape not in self._met or len(self._recorded) >= MAX_RECORDED_STEPS or shape in self._unrecordable:
            self._met.add(shape)
            return None
        try:
            return self._record(shape)
        except Exception:  # whatever recording may raise; launching shows whether the step itself is at fault
            self._unrecordable.add(shape)
            if self._is_sharded:  # the other ranks may be waiting in a collective of the recording
                raise
            return None

    def _record(self, shape: StepShape) -> RecordedStep:
        """Record a step of padding only: the numbers do not change which kernels are launched."""
        assert self._graphs is not None
        recorded = RecordedStep(padding_of(shape, self._form), self._device)

        def work() -> None:
            self._leave(self._forward(recorded.numbers, self._chosen))

        recorded.replay = self._graphs.record(work)
        self._recorded[shape] = recorded
        return recorded

    def _leave(self, logits: torch.Tensor) -> None:
        """Leave logits [W, V] where those of all recorded steps are: one tensor for each would take gigabytes."""
        if self._logits is None:
            most = SIZES[bisect_left(SIZES, min(self._max_rows, SIZES[-1]))]
            self._logits = torch.empty(most, logits.shape[1], dtype=logits.dtype, device=self._device)
        self._logits[: len(logits)].copy_(logits)

    def _recorded_shape(self, shape: StepShape) -> StepShape | None:
        """Return the shape that a step is padded to, or None if it is not recorded."""
        extras = {
            "num_copies": _power_of_two(shape.num_copies),
            "max_splits": _power_of_two(shape.max_splits),
        }
        if not any(shape.num_chunks):
            if shape.num_tokens > SIZES[-1]:
                return None
            return self._decode_shape(shape.num_tokens, num_gained=shape.num_gained, **extras)
        num_tokens = next((size for size in TOKEN_SIZES if size >= shape.num_tokens), None)
        most = self._decode_shape(min(self._max_rows, SIZES[-1])).num_wanted
        if num_tokens is None or num_tokens * self._num_params > MAX_RECORDED_WORK:
            return None
        padded = StepShape(
            num_tokens=num_tokens,
            num_wanted=most,
            num_single=most,
            num_chunks=tuple(-(-num_tokens // size) + most for size in self._form.tile_sizes),
            num_gained=max(most + num_tokens // self._form.page_tokens, _power_of_two(shape.num_gained)),
            **extras,
        )
        return padded if padded.holds(shape) else None

    def _decode_shape(
        self, num_rows: int, *, num_gained: int = 0, num_copies: int = 0, max_splits: int = 1
    ) -> StepShape:
        size = SIZES[bisect_left(SIZES, num_rows)]
        return StepShape(
            num_tokens=size,
            num_wanted=size,
            num_single=size,
            num_chunks=tuple(0 for _ in self._form.tile_sizes),
            num_gained=max(size, _power_of_two(num_gained)),
            num_copies=num_copies,
            max_splits=max_splits,
        )


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not less, or 0 for 0.

    >>> _power_of_two(5), _power_of_two(1), _power_of_two(0)
    (8, 1, 0)
    """
    return 1 << (number - 1).bit_length() if number else 0
