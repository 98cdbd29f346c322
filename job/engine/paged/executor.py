"""What every rank of a replica does with a step: enter its pages, run the model over its tokens, return logits."""

from typing import Any

import torch

from job.engine.paged.attention import Attend, attending
from job.engine.paged.cache import KVCache
from job.engine.paged.layout import BlockTables, Layout
from job.engine.paged.step import Step
from job.engine.paged.torch_attention import TorchAttention


class Executor:
    """The model with its cache. Holds what must be alike on all ranks, and decides nothing."""

    def __init__(self, module: Any, cache: KVCache, *, num_slots: int, device: torch.device) -> None:
        """Begin with an empty cache."""
        self._module, self._cache, self._device = module, cache, device
        self._tables = BlockTables(num_slots)

    def run(self, step: Step) -> torch.Tensor:
        """Compute a step.

        Returns:
            [N, V]: logits of the next token, for the sequences that want them, in the model's dtype; one row that means
            nothing if none does. A step may be run again: it writes the same places.
        """
        self._tables.gain(step.gained)
        layout = Layout(step, self._tables, self._cache.page_tokens)
        self._cache.begin(step, layout)
        return run_model(self._module, layout, self._attention(layout), self._device)

    def _attention(self, layout: Layout) -> Attend:
        return TorchAttention(self._cache, layout, self._device)


def run_model(module: Any, layout: Layout, attend: Attend, device: torch.device) -> torch.Tensor:
    """Run the model over a step's tokens; see ``Executor.run``."""
    sampled = layout.sampled_tokens if len(layout.sampled_tokens) else layout.positions[:1] * 0
    with torch.inference_mode(), attending(attend):
        output = module(
            input_ids=torch.from_numpy(layout.token_ids)[None].to(device),
            position_ids=torch.from_numpy(layout.positions)[None].to(device),
            use_cache=False,
            # DeepSpeed's sharded head needs the three dimensions [1, N, hidden] that this leaves.
            logits_to_keep=torch.from_numpy(sampled).to(device),
        )
    logits: torch.Tensor = output.logits[0]
    return logits
