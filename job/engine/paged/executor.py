"""What every rank of a replica does with a step: enter its pages, run the model over its tokens, return its logits."""

from typing import Any

import torch

from job.engine.paged.attention.backends import Backend, Recorder
from job.engine.paged.attention.cache import KVCache
from job.engine.paged.attention.interface import Attend, attending
from job.engine.paged.attention.layout import BlockTables, Layout
from job.engine.paged.schedule.step import Step


class Executor:
    """The model with its cache. Holds the state that must be the same on all ranks, and makes no decisions."""

    def __init__(self, module: Any, backend: Backend, cache: KVCache, *, num_slots: int, device: torch.device) -> None:
        """Run a model on an empty cache that the backend allocated."""
        self._module, self._backend, self._cache, self._device = module, backend, cache, device
        self._num_slots, self._tables = num_slots, BlockTables(num_slots)
        self._recorder: Recorder | None = None

    def record_steps(self) -> str | None:
        """Record steps and replay them, if the backend can. Only for a replica of one process.

        Returns:
            Why this model's steps cannot be recorded (they are then launched kernel by kernel), or None.
        """
        if self._backend.recorder is None:
            return None
        recorder = self._backend.recorder(self._module, self._cache, self._device, max_rows=self._num_slots)
        problem = recorder.problem()
        self._recorder = recorder if problem is None else None
        return problem

    def run(self, step: Step) -> torch.Tensor:
        """Compute a step. It may be run again: it then writes to the same places.

        Returns:
            [W, V]: logits of the wanted tokens, in the model's dtype; one meaningless row if no tokens are wanted.
        """
        self._tables.add(step.new_pages)
        if self._backend.reads_hidden:
            self._cache.clear(step.pages_to_clear)
        layout = Layout(step, self._tables, self._cache.page_tokens)
        if self._recorder is not None and self._recorder.may_replay(layout):
            return self._recorder.run(layout)
        attend = self._backend.attend(self._cache, layout, self._device)
        return run_model(self._module, layout, attend, self._device)


def run_model(module: Any, layout: Layout, attend: Attend, device: torch.device) -> torch.Tensor:
    """Run the model over a step's tokens; see ``Executor.run``."""
    wanted = layout.wanted_tokens if len(layout.wanted_tokens) else layout.positions[:1] * 0
    with torch.inference_mode(), attending(attend):
        output = module(
            input_ids=torch.from_numpy(layout.token_ids)[None].to(device),
            position_ids=torch.from_numpy(layout.positions)[None].to(device),
            use_cache=False,
            # DeepSpeed's sharded head needs the three dimensions [1, N, hidden] that this keeps.
            logits_to_keep=torch.from_numpy(wanted).to(device),
        )
    logits: torch.Tensor = output.logits[0]
    return logits
