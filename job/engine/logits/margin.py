"""How far a token is from being chosen: by how much its logit would have to rise, all else being equal.

Nothing of the pipeline is written a second time: the token's logit is raised step by step (or the winner's lowered),
and the pipeline chooses. So the answer holds for masks, penalties, filters and draws alike: the noise of a draw depends
on the row and the position, not on the logits.

Letters: B steps, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from job.engine.logits.constraint import Constraints
from job.engine.logits.guide import Guide, guides
from job.engine.logits.history import TokenHistory
from job.engine.logits.pipeline import choose
from job.engine.logits.sampling import SamplingBatch
from job.engine.transfers import Parcel
from job.records import Request
from job.tasks import Generate

STEPS = (0.0, *(2.0 ** (exponent / 2) for exponent in range(-40, 13)))
"""What is added at first: nothing, then 1e-6 to 64, each 1.4 times the one before."""

NOTHING = 1e-5
"""A gap below this is that of equal logits: float32 has no more digits."""

NUM_FINER = 32
"""Into how many steps the interval is cut that the first search leaves."""


@dataclass(frozen=True, slots=True)
class _Row:
    slot: int
    token_ids: Sequence[int]
    num_prompt: int


class Margin:
    """The choice of one token of a completion."""

    def __init__(
        self,
        logits: torch.Tensor,
        request: Request,
        before_ids: Sequence[int],
        completion_ids: Sequence[int],
        eos_token_ids: frozenset[int],
    ) -> None:
        """Look at the choice that follows some tokens.

        Args:
            logits: [V], of any floating dtype.
            request: its task is ``Generate``.
            before_ids: what the completion follows: the prompt, or what a decoder begins with.
            completion_ids: its tokens up to there.
            eos_token_ids: the model's.
        """
        assert isinstance(request.task, Generate)
        params = replace(request.task.params, logprobs=False, num_top_logprobs=0)
        self._batch = SamplingBatch(
            params=[params], keys=[request.key], positions=[len(completion_ids)], eos_token_ids=eos_token_ids
        )
        self._token_ids, self._num_prompt = [*before_ids, *completion_ids], len(before_ids)
        self._logits = _masked(logits[None], request, completion_ids, eos_token_ids)[0].float()

    def ranked(self, number: int) -> list[int]:
        """Return the tokens with the largest logits that the grammar allows, the largest first."""
        return self._logits.topk(min(number, len(self._logits))).indices.tolist()

    def gap(self, token: int) -> float:
        """Return by how many logits a token has missed being chosen; infinity if it cannot be."""
        if not 0 <= token < len(self._logits) or float(self._logits[token]) == -math.inf:
            return math.inf
        [winner] = self._choose(token, [0.0])
        if winner == token:
            return 0.0
        return min(self._smallest(token, 1.0, token), self._smallest(winner, -1.0, token))

    def _smallest(self, changed: int, sign: float, token: int) -> float:
        """Return the smallest change of a token's logit with which ``token`` is chosen."""
        steps = STEPS
        for _ in range(2):
            chosen = self._choose(changed, [sign * step for step in steps])
            first = next((idx for idx, each in enumerate(chosen) if each == token), None)
            if first is None:
                return math.inf
            low, high = steps[max(0, first - 1)], steps[first]
            steps = tuple(low + (high - low) * idx / NUM_FINER for idx in range(NUM_FINER + 1))
        return float(high) if high > NOTHING else 0.0  # of equal logits, the token with the lower id wins

    def _choose(self, changed: int, changes: Sequence[float]) -> list[int]:
        number = len(changes)
        logits = self._logits.repeat(number, 1)
        logits[:, changed] += torch.tensor(changes, device=logits.device)
        batch = replace(
            self._batch,
            params=[*self._batch.params] * number,
            keys=[*self._batch.keys] * number,
            positions=[*self._batch.positions] * number,
        )
        rows = [_Row(slot, self._token_ids, self._num_prompt) for slot in range(number)]
        return choose(logits, batch, TokenHistory(number).of(rows)).tokens


def _masked(
    logits: torch.Tensor, request: Request, completion_ids: Sequence[int], eos_token_ids: frozenset[int]
) -> torch.Tensor:
    """Return logits [1, V] with minus infinity for the tokens that reasoning and grammar rule out."""
    task = request.task
    assert isinstance(task, Generate)
    if not guides(task):
        return logits
    constraints = Constraints()
    guide = Guide(task, request.prompt_ids, task.params.eos_of(eos_token_ids), constraints)
    guide.go_through(completion_ids)
    allowed = guide.allowed()
    if allowed is None:
        return logits
    constraints.expect({0: allowed})
    masks, parcel = constraints.masks(), Parcel(logits.device)
    assert masks is not None
    return masks.send(parcel).apply(logits)
