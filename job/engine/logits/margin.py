"""How far a token is from being chosen: by how much its logit would have to rise, all else being equal.

Nothing of the pipeline is written a second time: the token's logit is raised step by step (or the winner's lowered),
and the pipeline chooses. So the answer holds for masks, penalties, filters and draws alike: the noise of a draw depends
on the row and the position, not on the logits.

Letters: B steps, V vocabulary.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
        raw: torch.Tensor | None = None,
    ) -> None:
        """Look at the choice that follows some tokens.

        Args:
            logits: [V], of any floating dtype; minus infinity for tokens that reasoning and grammar rule out.
            request: its task is ``Generate``.
            before_ids: what the completion follows: the prompt, or what a decoder begins with.
            completion_ids: its tokens up to there.
            eos_token_ids: the model's.
            raw: the logits as the model gives them, if others are ruled out.
        """
        assert isinstance(request.task, Generate)
        params = replace(request.task.params, logprobs=False, num_top_logprobs=0)
        self._batch = SamplingBatch(
            params=[params], keys=[request.key], positions=[len(completion_ids)], eos_token_ids=eos_token_ids
        )
        self._token_ids, self._num_prompt = [*before_ids, *completion_ids], len(before_ids)
        self._logits, self._raw = logits.float(), logits if raw is None else raw

    @cached_property
    def winner(self) -> int:
        """The token that is chosen."""
        return self._choose(0, 0.0)

    def ranked(self, number: int) -> list[int]:
        """Return the tokens with the largest logits that the grammar allows, the largest first."""
        return self._logits.topk(min(number, len(self._logits))).indices.tolist()

    def gap(self, token: int) -> float:
        """Return by how many logits a token has missed being chosen; infinity if it cannot be."""
        if not 0 <= token < len(self._logits) or float(self._logits[token]) == -math.inf:
            return math.inf
        if self.winner == token:
            return 0.0
        return min(self._smallest(token, 1.0, token), self._smallest(self.winner, -1.0, token))

    def logprob(self, token: int) -> float:
        """Return the log probability of a token in the model's own distribution."""
        return float(self._raw.float().log_softmax(-1)[token])

    def near(self, tokens: Iterable[int], limit: float) -> list[int]:
        """Return those of some tokens whose gap is at most ``limit``: the same, but faster for many tokens."""
        possible = [token for token in tokens if float(self._logits[token]) != -math.inf]
        if not possible:
            return []
        raised = self._logits.repeat(len(possible) + 1, 1)
        for row, token in enumerate(possible):
            raised[row, token] += limit
        raised[-1, self.winner] -= limit
        *chosen, second = self._chosen(raised)
        return [token for token, winner in zip(possible, chosen, strict=True) if token in (winner, second, self.winner)]

    def _smallest(self, changed: int, sign: float, token: int) -> float:
        """Return the smallest change of a token's logit with which ``token`` is chosen."""
        steps = STEPS
        for _ in range(2):
            first = bisect_left(steps, True, key=lambda step: self._choose(changed, sign * step) == token)
            if first == len(steps):
                return math.inf
            low, high = steps[max(0, first - 1)], steps[first]
            steps = tuple(low + (high - low) * idx / NUM_FINER for idx in range(NUM_FINER + 1))
        return float(high) if high > NOTHING else 0.0  # of equal logits, the token with the lower id wins

    def _choose(self, changed: int, change: float) -> int:
        logits = self._logits[None].clone()
        logits[0, changed] += change
        return self._chosen(logits)[0]

    def _chosen(self, logits: torch.Tensor) -> list[int]:
        number = len(logits)
        batch = replace(
            self._batch,
            params=[*self._batch.params] * number,
            keys=[*self._batch.keys] * number,
            positions=[*self._batch.positions] * number,
        )
        rows = [_Row(slot, self._token_ids, self._num_prompt) for slot in range(number)]
        return choose(logits, batch, TokenHistory(number).of(rows)).tokens


def margins(
    logits: Iterable[torch.Tensor],
    request: Request,
    before_ids: Sequence[int],
    completion_ids: Sequence[int],
    eos_token_ids: frozenset[int],
    first: int = 0,
) -> Iterator[Margin]:
    """Look at the choices at consecutive places of a completion; see ``Margin``.

    Args:
        logits: [V] each: after the first ``first`` tokens, after the next one, and so on. As the model gives them.
        completion_ids: at least the tokens that they follow.
    """
    masked = _Masked(request, completion_ids[:first], eos_token_ids)
    for end, each in enumerate(logits, first):
        if end > first:
            masked.accept(completion_ids[end - 1])
        yield Margin(masked(each), request, before_ids, completion_ids[:end], eos_token_ids, each)


class _Masked:
    """Gives minus infinity to tokens that reasoning and grammar rule out."""

    def __init__(self, request: Request, completion_ids: Sequence[int], eos_token_ids: frozenset[int]) -> None:
        """Begin after some tokens."""
        task = request.task
        assert isinstance(task, Generate)
        self._constraints = Constraints()
        self._guide: Guide | None = None
        if guides(task):
            self._guide = Guide(task, request.prompt_ids, task.params.eos_of(eos_token_ids), self._constraints)
            self._guide.go_through(completion_ids)

    def accept(self, token: int) -> None:
        if self._guide is not None:
            self._guide.go_through([token])

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits [V]."""
        allowed = None if self._guide is None else self._guide.allowed()
        if allowed is None:
            return logits
        self._constraints.expect({0: allowed})
        masks, parcel = self._constraints.masks(), Parcel(logits.device)
        assert masks is not None
        return masks.send(parcel).apply(logits[None])[0]
