"""Reasoning before an answer: what marks it, how long it may be, and how far a completion is in it.

Token ids only. Engines ask ``Thought`` while a completion grows; afterwards, the same class splits it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """How a completion may begin with reasoning. What follows that is the answer."""

    start_ids: tuple[int, ...]
    """What begins it. Prompts may end in it already, with or without text."""
    end_ids: tuple[int, ...]
    """What ends it."""
    closing_ids: tuple[int, ...]
    """What is forced to end it; its last tokens are ``end_ids``."""
    border_ids: frozenset[int] = frozenset()
    """Tokens that are never within reasoning, such as the ends of turns: after one, a prompt's marker is an old one."""
    max_tokens: int | None = None
    """The most tokens between the markers. None: any number."""

    @property
    def num_marker_tokens(self) -> int:
        """The number of tokens around the reasoning, at most."""
        return len(self.start_ids) + len(self.closing_ids)

    def is_open_after(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends within reasoning."""
        for end in range(len(prompt_ids), 0, -1):
            last = prompt_ids[end - 1]
            if last == self.start_ids[-1] and _ends_with(prompt_ids[:end], self.start_ids):
                return True
            if last in self.border_ids or (last == self.end_ids[-1] and _ends_with(prompt_ids[:end], self.end_ids)):
                return False
        return False


class Thought:
    """How far one completion is: before its reasoning, within it, or in its answer. Changes with every token."""

    def __init__(self, reasoning: Reasoning, prompt_ids: Sequence[int], *, is_constrained: bool) -> None:
        """Begin after a prompt.

        Args:
            is_constrained: whether the answer is not free text. Then a completion that begins like the start marker
                goes on with it, and any other beginning is the answer's.
        """
        self._reasoning, self._is_constrained = reasoning, is_constrained
        self.forced: deque[int] = deque()
        """Tokens that must come next."""
        self.begin: int | None = 0 if reasoning.is_open_after(prompt_ids) else None
        """The index of the first token of the reasoning; None if none has begun."""
        self.answer_begin: int | None = None
        """The index of the first token of the answer; None before that."""
        self._end: int | None = None
        self._cut_at: int | None = None
        self._num_tokens = 0
        self._recent: deque[int] = deque(maxlen=max(len(reasoning.start_ids), len(reasoning.closing_ids)))
        self._look_at_budget()

    @property
    def end(self) -> int:
        """The index after the last token of the reasoning."""
        return self._num_tokens if self._end is None else self._end

    @property
    def num_reasoning_tokens(self) -> int:
        """The number of tokens in the reasoning so far, without its markers."""
        return 0 if self.begin is None else self.end - self.begin

    @property
    def is_cut(self) -> bool:
        """Whether the end of the reasoning was forced, before the model had begun to write it."""
        return self._cut_at is not None and self._num_tokens > self._cut_at

    @property
    def closing(self) -> tuple[int, ...]:
        """The tokens that would end the reasoning from here; none if it has not begun, or has ended."""
        if self.begin is None or self.answer_begin is not None:
            return ()
        return tuple(self.forced) or self._reasoning.closing_ids[self._num_written :]

    def close(self) -> None:
        """Force the end of the reasoning, which has begun: the model would end there without an answer."""
        if not self.forced:
            self._end = self._num_tokens - self._num_written
            self.forced.extend(self.closing)

    def accept(self, token: int) -> None:
        """Advance by a token."""
        if self.answer_begin is not None:
            return
        self._num_tokens += 1
        self._recent.append(token)
        if self.forced:
            self.forced.popleft()
            if self.forced:
                return
        if self.begin is None:
            self._look_for_start()
        elif self._has(self._reasoning.end_ids):
            self._close()
        self._look_at_budget()

    def _look_for_start(self) -> None:
        start_ids, end_ids = self._reasoning.start_ids, self._reasoning.end_ids
        begun = tuple(self._recent)
        if begun == start_ids:
            self.begin = self._num_tokens
        elif self._is_constrained:
            if begun == start_ids[:1]:
                self.forced.extend(start_ids[1:])
            else:
                self.answer_begin = 0
        elif begun == end_ids:
            self.answer_begin = self._num_tokens
        elif begun not in (start_ids[: len(begun)], end_ids[: len(begun)]):
            self.answer_begin = 0

    def _close(self) -> None:
        self.answer_begin = self._num_tokens
        if self._end is None:
            closing_ids, end_ids = self._reasoning.closing_ids, self._reasoning.end_ids
            self._end = self._num_tokens - len(closing_ids if self._has(closing_ids) else end_ids)

    def _look_at_budget(self) -> None:
        """Force the end if the reasoning has all the tokens that it may have."""
        most = self._reasoning.max_tokens
        if most is None or self.begin is None or self._end is not None or self._num_tokens - self.begin < most:
            return
        # The model may be about to end it: what it has written of the marker is not written again.
        self._cut_at = None if self._num_written else self._num_tokens
        self.close()

    @property
    def _num_written(self) -> int:
        """How many of the closing tokens the model has just written."""
        closing_ids = self._reasoning.closing_ids
        return next(num for num in range(len(closing_ids) - 1, -1, -1) if self._has(closing_ids[:num]))

    def _has(self, ids: tuple[int, ...]) -> bool:
        """Whether these are the latest tokens of the reasoning."""
        return self._num_tokens - (self.begin or 0) >= len(ids) and _ends_with(tuple(self._recent), ids)


def _ends_with(ids: Sequence[int], end: tuple[int, ...]) -> bool:
    return not end or tuple(ids[-len(end) :]) == end
