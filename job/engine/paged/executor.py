"""What every rank of a replica does with a step: enter its pages, run the model over its tokens, return its logits."""

from typing import Any

import torch

from job.engine.paged.attention.backends import Backend, Steps
from job.engine.paged.attention.cache import KVCache
from job.engine.paged.attention.interface import Attend, attending
from job.engine.paged.attention.layout import BlockTables, Layout
from job.engine.paged.schedule.step import Step
from job.launch.replica import Replica


class Executor:
    """The model with its cache. Holds the state that must be the same on all ranks, and makes no decisions."""

    def __init__(self, module: Any, backend: Backend, cache: KVCache, *, num_slots: int, device: torch.device) -> None:
        """Run a model on an empty cache that the backend allocated."""
        self._module, self._backend, self._cache, self._device = module, backend, cache, device
        self._tables = BlockTables(num_slots)
        self._steps: Steps | None = None
        self._records = False
        if backend.steps is not None:
            self._steps = backend.steps(module, cache, device, num_slots=num_slots)

    @property
    def records_steps(self) -> bool:
        """Whether steps are recorded and replayed."""
        return self._records

    def record_steps(self, replica: Replica) -> str | None:
        """Record steps from now on, unless one of the ranks cannot. All ranks of a replica must call this together.

        Returns:
            Why this model's steps cannot be recorded, or None. Nothing happens if the backend has no such steps.
        """
        if self._steps is None:
            return None
        num_params = max(replica.gather(sum(param.numel() for param in self._module.parameters())))
        problem = self._steps.record(num_params, is_sharded=replica.has_followers)
        problems = [text for text in replica.gather_status(problem) if text is not None]
        self._records = not problems
        if problems:
            self._steps.launch_all()
        return problems[0] if problems else None

    def run(self, step: Step, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """Compute a step. It may be run again: it then writes to the same places.

        Args:
            chosen: [step.num_chosen or more] int64, on the device: the latest choice; not needed if that is 0.

        Returns:
            [W, V]: logits of the wanted tokens, in the model's dtype; one meaningless row if no tokens are wanted.
        """
        self._tables.add(step.new_pages)
        if self._backend.reads_hidden:
            self._cache.clear(step.pages_to_clear)
        if self._steps is not None:
            return self._steps.run(step, self._tables, chosen)
        layout = Layout(step, self._tables, self._cache.page_tokens)
        attend = self._backend.attend(self._cache, layout, self._device)
        return run_model(self._module, layout, attend, self._device, chosen)


def run_model(
    module: Any, layout: Layout, attend: Attend, device: torch.device, chosen: torch.Tensor | None = None
) -> torch.Tensor:
    """Run the model over a step's tokens; see ``Executor.run``."""
    wanted = layout.wanted_tokens if len(layout.wanted_tokens) else layout.positions[:1] * 0
    with torch.inference_mode(), attending(attend):
        output = module(
            input_ids=layout.tokens(device, chosen)[None],
            position_ids=torch.from_numpy(layout.positions)[None].to(device),
            use_cache=False,
            # DeepSpeed's sharded head needs the three dimensions [1, N, hidden] that this keeps.
            logits_to_keep=torch.from_numpy(wanted).to(device),
        )
    logits: torch.Tensor = output.logits[0]
    return logits
