"""Constrained decoding: llguidance computes which tokens may come next in each row, while the model runs.

Exists on the leader only. Never sees text: each request brings a ``Grammar`` that was made for the tokenizer.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from job.engine.logits.masks import Masks, allow_alike, allow_besides, allow_only, empty_words
from job.errors import first_line
from job.tasks import Grammar

RENEW_ROWS = 1000
"""A grammar is recompiled after this many rows. The copies of a matcher share a cache of lexer states: it makes them
fast, but it only grows, and llguidance gives up at 250,000 states, about 500 MB.
"""

MAX_KEPT_GRAMMARS = 64
"""How many compiled grammars are kept for later rows."""


class Matcher:
    """The position of one completion in its grammar. It belongs to the row and stays valid when a step fails."""

    def __init__(self, inner: Any, grammar: Grammar, eos_token_ids: Collection[int]) -> None:
        """Wrap a matcher of llguidance that no other row uses.

        Args:
            eos_token_ids: tokens that end the completion: allowed only where it is complete.
        """
        self.inner, self.eos_token_id = inner, grammar.eos_token_id
        self.eos_token_ids = frozenset(eos_token_ids)
        self.forced: deque[int] = deque()
        """Tokens that must come next because the grammar allows no other text; ``inner`` has consumed them already."""
        self._exception: Exception | None = None
        self._look_ahead()

    @property
    def has_ended(self) -> bool:
        """Whether no token can follow."""
        return not self.forced and bool(self.inner.is_stopped())

    @property
    def failure(self) -> str | None:
        """Why llguidance gave up: the grammar is too ambiguous here, or no token of the vocabulary can follow."""
        if self._exception is not None:
            return f"{type(self._exception).__name__}: {first_line(self._exception)}"
        if self.inner.is_error():
            reason = str(self.inner.get_error().partition("\n")[0])  # the rest shows llguidance's internals
            return "no token of the vocabulary can follow" if reason == "NoExtensionBias" else reason
        if self.inner.is_stopped() and not self.inner.is_accepting():
            return f"a limit in the grammar itself cut the text short ({self.inner.stop_reason()})"
        return None

    def accept(self, token: int) -> None:
        """Advance by the token that was chosen. Never raises: an error becomes this row's ``failure``."""
        if self.failure is not None or token in self.eos_token_ids:
            return
        try:
            if self.forced:
                assert self.forced.popleft() == token, "a mask that allows a single token was ignored"
            else:
                self.inner.consume_token(token)
                self._look_ahead()
        except Exception as error:
            self._exception = error

    def take_forced(self, most: int) -> list[int]:
        """Return at most ``most`` of the tokens that must come next, and treat them as accepted."""
        return [self.forced.popleft() for _ in range(min(most, len(self.forced)))]

    def _look_ahead(self) -> None:
        if not self.inner.is_stopped():
            self.forced.extend(self.inner.compute_ff_tokens())
            self.inner.consume_tokens(list(self.forced))


class Allowed(NamedTuple):
    """Which tokens may come next in a row."""

    matcher: Matcher | None = None
    """Those that it allows, unless there is ``only``."""
    only: int | None = None
    """The token that must come next."""
    besides: int | None = None
    """A token that is allowed, too."""


@dataclass(slots=True)
class Compiled:
    """A compiled grammar, and how many rows have started with a copy of it."""

    matcher: Any
    num_begun: int = 0


class Constraints:
    """Computes the masks of constrained rows, one step at a time, in its own threads."""

    def __init__(self) -> None:
        """Start without grammars; no thread is started before the first one."""
        self._compiled: OrderedDict[Grammar, Compiled] = OrderedDict()
        self._masks: Future[Masks] | None = None
        self._vocab_size: int | None = None

    def begin(self, grammar: Grammar, eos_token_ids: Collection[int]) -> Matcher:
        """Return the matcher of a new completion; see ``Matcher``."""
        assert self._vocab_size in (None, grammar.vocab_size), "a model has one tokenizer"
        self._vocab_size = grammar.vocab_size
        compiled = self._compiled.get(grammar)
        if compiled is None or compiled.num_begun >= RENEW_ROWS:
            compiled = self._compiled[grammar] = Compiled(grammar.compile())
        self._compiled.move_to_end(grammar)
        if len(self._compiled) > MAX_KEPT_GRAMMARS:
            self._compiled.popitem(last=False)
        compiled.num_begun += 1
        return Matcher(compiled.matcher.deep_copy(), grammar, eos_token_ids)

    def expect(self, allowed: Mapping[int, Allowed]) -> None:
        """Start computing the masks for the next tokens of some rows, and return at once.

        A single thread computes one step after another, so the matchers of a failed step may be passed again anytime.

        Args:
            allowed: by row, for the rows of the next step that may not take any token, in the order of the rows.
        """
        self._masks = self._thread.submit(self._compute, dict(allowed)) if allowed else None

    def masks(self) -> Masks | None:
        """Wait for the masks that were last expected, and return them. None: every row may take any token."""
        return None if self._masks is None else self._masks.result()

    @cached_property
    def _executor(self) -> Any:
        from llguidance import LLExecutor

        return LLExecutor()

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="masks")

    def _compute(self, allowed: Mapping[int, Allowed]) -> Masks:
        rows = list(enumerate(allowed.values()))
        words = empty_words(len(rows), self._vocab_size or 1 + max(each.only or 0 for _, each in rows))
        matchers = [(row, each.matcher) for row, each in rows if each.matcher is not None and each.only is None]
        if matchers:  # llguidance releases the interpreter's lock
            num_rows, width = words.shape
            inner = [(matcher.inner, row) for row, matcher in matchers]
            self._executor.unsafe_compute_mask_ptr(inner, words.ctypes.data, width * words.itemsize, num_rows)
        for eos_token_id, eos_token_ids in {(m.eos_token_id, m.eos_token_ids) for _, m in matchers}:
            alike = [row for row, m in matchers if (m.eos_token_id, m.eos_token_ids) == (eos_token_id, eos_token_ids)]
            allow_alike(words, alike, eos_token_id, eos_token_ids - {eos_token_id})
        for row, each in rows:
            if each.only is not None:
                allow_only(words, row, each.only)
            if each.besides is not None:
                allow_besides(words, row, each.besides)
        return Masks(words, np.array(list(allowed), np.int64))
