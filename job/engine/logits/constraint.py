"""Constrained decoding: which tokens may come next in each row, by llguidance, computed while the model runs.

Lives on the leader alone. Knows no text: what was compiled for the tokenizer comes as a ``Grammar`` with each request.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from job.engine.logits.masks import Masks, allow_alike, allow_only, empty_words
from job.errors import first_line
from job.tasks import Grammar

RENEW_ROWS = 1000
"""After this many rows a grammar is compiled anew. Copies of a matcher share what they have found out about texts: that
makes them quick, but only grows, and llguidance gives up at 250,000 states of its lexer, some 500 MB.
"""

MAX_KEPT_GRAMMARS = 64
"""Grammars whose compiled form is kept for rows to come."""


class Matcher:
    """One completion on its way through the grammar. It belongs to its row, whatever becomes of steps."""

    def __init__(self, inner: Any, grammar: Grammar, eos_token_ids: Collection[int]) -> None:
        """Begin with llguidance's matcher of its own.

        Args:
            eos_token_ids: tokens that end the completion: allowed where it is complete, and nowhere else.
        """
        self.inner, self.eos_token_id = inner, grammar.eos_token_id
        self.eos_token_ids = frozenset(eos_token_ids)
        self.forced: deque[int] = deque()
        """Tokens that must come next, because the grammar allows no other text; ``inner`` has taken them already."""
        self._exception: Exception | None = None
        self._look_ahead()

    @property
    def has_ended(self) -> bool:
        """Whether nothing can follow."""
        return not self.forced and bool(self.inner.is_stopped())

    @property
    def failure(self) -> str | None:
        """Why llguidance gave up: the grammar is too ambiguous here, or no token of the vocabulary can go on."""
        if self._exception is not None:
            return f"{type(self._exception).__name__}: {first_line(self._exception)}"
        if self.inner.is_error():
            reason = str(self.inner.get_error().partition("\n")[0])  # the rest shows llguidance's insides
            return "no token of the vocabulary can follow" if reason == "NoExtensionBias" else reason
        if self.inner.is_stopped() and not self.inner.is_accepting():
            return f"the grammar's own limit ended the text ({self.inner.stop_reason()})"
        return None

    def accept(self, token: int) -> None:
        """Take over the token that was chosen. Never raises: what goes wrong is this row's ``failure``."""
        if self.failure is not None or token in self.eos_token_ids:
            return
        try:
            if self.forced:
                assert self.forced.popleft() == token, "a mask that allows one token was not obeyed"
            else:
                self.inner.consume_token(token)
                self._look_ahead()
        except Exception as error:
            self._exception = error

    def take_forced(self, most: int) -> list[int]:
        """Return tokens that must come next, at most this many, and take them as accepted."""
        return [self.forced.popleft() for _ in range(min(most, len(self.forced)))]

    def _look_ahead(self) -> None:
        if not self.inner.is_stopped():
            self.forced.extend(self.inner.compute_ff_tokens())
            self.inner.consume_tokens(list(self.forced))


@dataclass(slots=True)
class Compiled:
    """A compiled grammar, and how many rows have begun with a copy of it."""

    matcher: Any
    num_begun: int = 0


class Constraints:
    """What completions must be. Computes the masks of one step at a time, in threads of its own."""

    def __init__(self) -> None:
        """Start no thread before the first grammar."""
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

    def expect(self, matchers: Mapping[int, Matcher]) -> None:
        """Begin to compute the masks of some rows' next tokens, and return at once.

        One thread computes step after step: a matcher whose last step has failed may be expected again at any time.

        Args:
            matchers: of the rows of the next step that have one, in the order of the rows.
        """
        self._masks = self._thread.submit(self._compute, dict(matchers)) if matchers else None

    def masks(self) -> Masks | None:
        """Return the masks that were expected, as soon as they are there. None: every row may take any token."""
        return None if self._masks is None else self._masks.result()

    @cached_property
    def _executor(self) -> Any:
        from llguidance import LLExecutor

        return LLExecutor()

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="masks")

    def _compute(self, matchers: Mapping[int, Matcher]) -> Masks:
        assert self._vocab_size is not None
        words = empty_words(len(matchers), self._vocab_size)
        rows = list(enumerate(matchers.values()))
        open_rows = [(row, matcher) for row, matcher in rows if not matcher.forced]
        if open_rows:  # llguidance lets go of the interpreter's lock
            num_rows, width = words.shape
            inner = [(matcher.inner, row) for row, matcher in open_rows]
            self._executor.unsafe_compute_mask_ptr(inner, words.ctypes.data, width * words.itemsize, num_rows)
        for eos_token_id, eos_token_ids in {(m.eos_token_id, m.eos_token_ids) for _, m in open_rows}:
            alike = [row for row, m in open_rows if (m.eos_token_id, m.eos_token_ids) == (eos_token_id, eos_token_ids)]
            allow_alike(words, alike, eos_token_id, eos_token_ids - {eos_token_id})
        for row, matcher in rows:
            if matcher.forced:
                allow_only(words, row, matcher.forced[0])
        return Masks(words, np.array(list(matchers), np.int64))
