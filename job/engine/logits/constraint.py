"""Constrained decoding: which tokens may come next in each row, by llguidance, computed while the model runs.

Lives on the leader alone. Knows no text: what was compiled for the tokenizer comes as a ``Grammar``.
"""

from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from job.engine.logits.masks import Masks, allow_alike, allow_only, empty_words
from job.records import Grammar

RENEW_ROWS = 1000
"""After so many rows the grammar is compiled anew. Copies of a matcher share what they have found out about texts: that
makes them quick, but only grows, and llguidance gives up at 250,000 states of its lexer, some 500 MB.
"""


class Matcher:
    """One completion on its way through the grammar. It belongs to its row, whatever becomes of steps."""

    def __init__(self, inner: Any) -> None:
        """Begin with llguidance's matcher of its own."""
        self.inner = inner
        self.forced: deque[int] = deque()
        """Tokens that must come next, because the grammar allows no other text; ``inner`` is behind them already."""
        self._look_ahead()

    @property
    def has_ended(self) -> bool:
        """Whether nothing can follow."""
        return not self.forced and bool(self.inner.is_stopped())

    @property
    def failure(self) -> str | None:
        """Why llguidance gave up: the grammar is too ambiguous here, or no token of the vocabulary can go on."""
        if self.inner.is_error():
            reason = str(self.inner.get_error().partition("\n")[0])  # the rest shows llguidance's insides
            return "no token of the vocabulary can follow" if reason == "NoExtensionBias" else reason
        if self.inner.is_stopped() and not self.inner.is_accepting():
            return f"the grammar's own limit ended the text ({self.inner.stop_reason()})"
        return None

    def accept(self, token: int) -> None:
        """Take over the token that was chosen: an allowed one, but not one that ends the completion."""
        if self.forced:
            assert self.forced.popleft() == token, "a mask that allows one token was not obeyed"
        else:
            self.inner.consume_token(token)
            self._look_ahead()

    def take_forced(self, most: int) -> list[int]:
        """Return tokens that must come next, so many at most, and take them as accepted."""
        return [self.forced.popleft() for _ in range(min(most, len(self.forced)))]

    def _look_ahead(self) -> None:
        if not self.inner.is_stopped():
            self.forced.extend(self.inner.compute_ff_tokens())
            self.inner.consume_tokens(list(self.forced))


class Constraint:
    """What every completion must be. Computes the masks of one step at a time, in threads of its own."""

    def __init__(self, grammar: Grammar, eos_token_ids: Collection[int]) -> None:
        """Begin with a compiled grammar.

        Args:
            eos_token_ids: tokens that end a completion: allowed where it is complete, and nowhere else.
        """
        from llguidance import LLExecutor

        self._grammar = grammar
        self._other_eos = [token for token in eos_token_ids if token != grammar.eos_token_id]
        self._executor = LLExecutor()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._masks: Future[Masks] | None = None
        self._template: Any = None
        self._num_begun = 0

    def begin(self) -> Matcher:
        """Return the matcher of a new completion."""
        if self._num_begun % RENEW_ROWS == 0:
            self._template = self._grammar.compile()
        self._num_begun += 1
        return Matcher(self._template.deep_copy())

    def expect(self, matchers: Sequence[Matcher]) -> None:
        """Begin to compute the masks of these rows' next tokens, and return at once.

        One thread computes step after step: a matcher whose last step has failed may be expected again at any time.
        """
        self._masks = self._thread.submit(self._compute, matchers)

    def masks(self) -> Masks:
        """Return the masks that were expected, as soon as they are there."""
        assert self._masks is not None, "masks must be expected first"
        return self._masks.result()

    def _compute(self, matchers: Sequence[Matcher]) -> Masks:
        words = empty_words(len(matchers), self._grammar.vocab_size)
        open_rows = [(matcher.inner, row) for row, matcher in enumerate(matchers) if not matcher.forced]
        if open_rows:  # llguidance lets go of the interpreter's lock
            num_rows, width = words.shape
            self._executor.unsafe_compute_mask_ptr(open_rows, words.ctypes.data, width * words.itemsize, num_rows)
            allow_alike(words, self._grammar.eos_token_id, self._other_eos)
        for row, matcher in enumerate(matchers):
            if matcher.forced:
                allow_only(words, row, matcher.forced[0])
        return Masks(words)


class ConstrainedBatch:
    """The rows of a static batch on their way through the grammar, all of them from their first token."""

    def __init__(self, constraint: Constraint, num_rows: int, eos_token_ids: Collection[int]) -> None:
        """Begin, and expect the first masks."""
        self._constraint, self._eos_token_ids = constraint, frozenset(eos_token_ids)
        self._going = {row: constraint.begin() for row in range(num_rows)}
        constraint.expect(list(self._going.values()))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return logits [B, V] that leave to the rows that go on what is allowed."""
        rows = torch.tensor(list(self._going), device=logits.device)
        return logits.index_copy(0, rows, self._constraint.masks().apply(logits[rows]))

    def advance(self, tokens: Sequence[int]) -> dict[int, str | None]:
        """Lead the rows behind their tokens [B]; return those that have ended by them, and why if they failed."""
        ended: dict[int, str | None] = {}
        for row, matcher in self._going.items():
            has_ended = tokens[row] in self._eos_token_ids
            if matcher.failure is None and not has_ended:
                matcher.accept(tokens[row])
            if has_ended or matcher.has_ended or matcher.failure is not None:
                ended[row] = matcher.failure
        for row in ended:
            del self._going[row]
        if self._going:
            self._constraint.expect(list(self._going.values()))
        return ended
