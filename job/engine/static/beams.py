"""Beam search for one row: which hypotheses go on, which are finished, and when nothing better can come.

The rules are those of transformers' ``generate`` (``_beam_search`` in its ``generation/utils.py``), so that a row gets
the same tokens there and here. They do not depend on the other rows of a batch. Numbers are float32, as there.

Letters: N beams.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from job.tasks import BeamSearch


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A beam and one token more."""

    beam: int
    """The index of the beam."""
    token: int
    score: np.float32
    """Sum of the log probabilities of all tokens, after penalties."""


@dataclass(slots=True, kw_only=True)
class Beam:
    """A hypothesis that goes on. Implements ``RowTokens``."""

    token_ids: list[int]
    """What the decoder begins with, and the completion so far."""
    num_prompt: int
    """How many of them it begins with."""
    score: np.float32
    """See ``Candidate``; minus infinity for one that only fills a place."""
    parent: int
    """The index of the beam before the latest token that it continues."""
    slot: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A completion that has ended."""

    token_ids: Sequence[int]
    """Of the completion, with the token that ended it."""
    is_cut: bool
    """Whether it ended at its limit."""
    score: np.float32
    """Sum of the log probabilities, divided by ``length ** length_penalty``."""


class Search:
    """The search for the completion of one row."""

    def __init__(self, task: BeamSearch, begin_ids: Sequence[int], ends: frozenset[int], *, forces_end: bool) -> None:
        """Begin with one beam.

        Args:
            begin_ids: what the decoder begins with. In lengths, transformers counts all of them but the first.
            ends: the tokens that end a completion.
            forces_end: whether the model ends a completion that reaches its limit.
        """
        self.task, self.forces_end = task, forces_end
        self._ends, self._num_begin = ends, len(begin_ids)
        self.beams = [Beam(token_ids=list(begin_ids), num_prompt=len(begin_ids), score=np.float32(0), parent=0)]
        """The hypotheses that go on, the best first: one at first, then N."""
        self.finished: list[Hypothesis] = []
        """At most N, the best first."""
        self.is_open = True
        """Whether a better one may come."""

    @property
    def num_candidates(self) -> int:
        """How many candidates a step needs at most: with fewer, those that end could leave less than N."""
        return max(2, 1 + len(self._ends)) * self.task.num_beams

    @property
    def num_generated(self) -> int:
        """The number of tokens in each beam's completion so far."""
        return len(self.beams[0].token_ids) - self._num_begin

    @property
    def is_at_limit(self) -> bool:
        """Whether the next token is the last."""
        return self.num_generated + 1 >= self.task.params.max_new_tokens

    def advance(self, candidates: Sequence[Candidate]) -> None:
        """Choose among the candidates for the next token.

        Args:
            candidates: the best first. Those with a score of minus infinity are impossible.
        """
        is_last, num_beams = self.is_at_limit, self.task.num_beams
        possible = [candidate for candidate in candidates[: self.num_candidates] if np.isfinite(candidate.score)]
        length = self.num_generated + 1 + self._num_begin - 1
        ended = [c for c in possible[:num_beams] if is_last or c.token in self._ends]
        hypotheses = [*self.finished, *(self._hypothesis(c, length, is_cut=self._is_cut(c)) for c in ended)]
        self.finished = sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)[:num_beams]
        going = [] if is_last else [c for c in possible if c.token not in self._ends][:num_beams]
        self.is_open = bool(going) and self._may_improve(going[0].score, length)
        if self.is_open:
            self._go_on(going)

    def _is_cut(self, candidate: Candidate) -> bool:
        """Whether a candidate that ends does so only because of its limit."""
        return candidate.token not in self._ends or (self.is_at_limit and self.forces_end)

    def _hypothesis(self, candidate: Candidate, length: int, *, is_cut: bool) -> Hypothesis:
        token_ids = [*self.beams[candidate.beam].token_ids[self._num_begin :], candidate.token]
        return Hypothesis(token_ids=token_ids, is_cut=is_cut, score=self._per_length(candidate.score, length))

    def _per_length(self, score: np.float32, length: int) -> np.float32:
        return np.float32(score / np.float32(length**self.task.length_penalty))

    def _may_improve(self, best: np.float32, length: int) -> bool:
        """Whether a beam may become better than the worst of N finished hypotheses, as transformers guesses."""
        task = self.task
        if len(self.finished) < task.num_beams:
            return True
        if task.early_stopping == "true":
            return False
        if task.early_stopping == "never" and task.length_penalty > 0:
            length = task.params.max_new_tokens + self._num_begin - 1
        return bool(self._per_length(best, length) > self.finished[-1].score)

    def _go_on(self, going: Sequence[Candidate]) -> None:
        beams = [
            Beam(
                token_ids=[*self.beams[candidate.beam].token_ids, candidate.token],
                num_prompt=self._num_begin,
                score=candidate.score,
                parent=candidate.beam,
            )
            for candidate in going
        ]
        num_missing = self.task.num_beams - len(beams)
        fillers = [
            Beam(
                token_ids=beams[0].token_ids,
                num_prompt=self._num_begin,
                score=np.float32(-np.inf),
                parent=beams[0].parent,
            )
            for _ in range(num_missing)
        ]
        self.beams = [*beams, *fillers]
