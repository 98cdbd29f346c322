"""The generated texts of a row, as it is in a part, and which tokens may be the run's: those whose text it has.

Parts have the token ids of few runs, and the same text can be split into tokens in several ways. White space around the
reasoning is not in the part, and neither are special tokens: any of them may have been there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from job.modes.reasoning import REASONING
from job.modes.stop_texts import StopTexts
from job.records import Completion, Generation
from job.run.computer import Computer, generates
from job.run.recompute import AskedAgain
from job.tasks import Score
from job.tasks.reasoning import Thought

TORN = "\N{REPLACEMENT CHARACTER}"
"""What an incomplete character at the end of tokens becomes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the first tokens of a completion say."""

    thought: Thought | None = None
    """Of a completion that may reason."""
    texts: Sequence[str] = ()
    """While it reasons: the reasoning with all tokens, and without those that may be the beginning of its end."""
    found: Completion | None = None
    """The row that they make, once the answer may have begun."""


class RowTexts:
    """The texts of one row."""

    def __init__(self, computer: Computer, asked: AskedAgain) -> None:
        """Compare with a row of a part."""
        self._computer, self._asked, self._row = computer, asked, asked.row.completion
        self.prompt = asked.prompt
        self.is_scored = asked.request is not None and isinstance(asked.request.task, Score)
        """Whether the answer is chosen by its score. Reasoning before it is generated."""
        self._reasoning: str | None = self._row.values.get(REASONING)
        self._answer = "" if self.is_scored else self._row.completion or ""
        self._num_reasoning: int | None = self._row.values.get("num_reasoning_tokens")

    def is_same(self, found: Completion) -> bool:
        """Whether the generated texts are those in the part, have as many tokens, and end for the same reason."""
        if not self.has_same_text(found) or found.values.get("num_reasoning_tokens") != self._num_reasoning:
            return False
        return self.is_scored or found.num_completion_tokens == self._row.num_completion_tokens

    def has_same_text(self, found: Completion) -> bool:
        """Whether the generated texts are those in the part, and end for the same reason."""
        if (found.values.get(REASONING) or "") != (self._reasoning or ""):
            return False
        return self.is_scored or ((found.completion or ""), found.finish_reason) == (
            self._answer,
            self._row.finish_reason,
        )

    def num_agreed(self, generation: Generation, ids: Sequence[int]) -> int:
        """Return how many of the first tokens of a completion may be those of the part."""
        low, high = 0, len(ids)
        while low < high:  # the first tokens agree, all others do not
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.agree(generation, ids[:middle]) else (low, middle - 1)
        return low

    def agree(self, generation: Generation, ids: Sequence[int]) -> bool:
        """Whether the completion in the part may begin with these tokens."""
        if not self.is_scored and len(ids) > self._row.num_completion_tokens:
            return False
        said = self._said(generation, ids)
        if said.found is None:
            return not said.texts or self._may_think(said)
        if (said.found.values.get(REASONING) or "") != (self._reasoning or ""):
            return False
        if said.found.values.get("num_reasoning_tokens") != self._num_reasoning:
            return False
        return self.is_scored or self._begins(generation, said.found.completion or "")

    def is_whole(self, generation: Generation, ids: Sequence[int]) -> bool:
        """Whether all of the text in the part is there."""
        said = self._said(generation, ids)
        if said.found is not None:
            return (said.found.completion or "", said.found.values.get(REASONING) or "") == (
                self._answer,
                self._reasoning or "",
            )
        return bool(said.texts) and not self._answer and self._is_whole_reasoning(said.texts[0])

    def closing(self, generation: Generation, ids: Sequence[int]) -> tuple[int, ...]:
        """Return what is written in place of an end that is drawn after these tokens; empty if such an end stays."""
        task, thought = generates(generation.request), self._said(generation, ids).thought
        if task is None or thought is None or thought.forced or (task.grammar is None and not task.ends_at_answer):
            return ()
        return thought.closing

    def has_answer(self, generation: Generation, ids: Sequence[int]) -> bool:
        """Whether the reasoning has ended, if there is any."""
        return self._said(generation, ids).found is not None

    def candidates(self, generation: Generation, ids: Sequence[int]) -> Sequence[int]:
        """Return the tokens with text that may be the run's after some others.

        Those are what the rest of its text, or a marker of the reasoning, begins with.
        """
        said = self._said(generation, ids)
        return list(dict.fromkeys([*self._with_text(said, ids), *self._markers(said, len(ids))]))

    def _said(self, generation: Generation, ids: Sequence[int]) -> Said:
        request, task = generation.request, generates(generation.request)
        assert task is not None
        thought = None
        if task.reasoning is not None:
            is_constrained = task.grammar is not None or task.ends_at_answer
            thought = Thought(task.reasoning, request.prompt_ids, is_constrained=is_constrained)
            for token in ids:
                thought.accept(token)
            if thought.answer_begin is None:
                if thought.begin is None:
                    return Said(thought=thought)
                num_written = len(task.reasoning.closing_ids) - len(thought.closing)
                pieces = [list(ids[thought.begin : len(ids) - number]) for number in (0, num_written)]
                if thought.forced:
                    pieces = [list(ids[thought.begin : thought.end])] * 2
                return Said(thought=thought, texts=self._computer.examined.tokenizer.decode(pieces))
        cut = replace(generation, token_ids=ids, finish_reason="length", logprobs=None, top_ids=None, top_logprobs=None)
        return Said(thought=thought, found=self._computer.complete(cut, self._asked.prompt))

    def _may_think(self, said: Said) -> bool:
        thought, (text, without_end) = said.thought, said.texts
        assert thought is not None
        if self._reasoning is None:
            return False
        num_unwritten, number = len(thought.closing), thought.num_reasoning_tokens
        if self._is_whole_reasoning(without_end) and (thought.forced or text != without_end):
            return True  # the end may have been begun
        if thought.forced or (self._num_reasoning is not None and number > self._num_reasoning + num_unwritten):
            return False
        text = text.rstrip(TORN).lstrip()
        after = text[len(self._reasoning) :] if text.startswith(self._reasoning) else ""
        return self._reasoning.startswith(text) or after.isspace()

    def _is_whole_reasoning(self, text: str) -> bool:
        return text.strip() == (self._reasoning or "")

    def _begins(self, generation: Generation, text: str) -> bool:
        text, stored = text.rstrip(TORN), self._answer
        if stored.startswith(text):
            return True
        after = text[len(stored) :] if text.startswith(stored) else ""
        task = generates(generation.request)
        stops = task.ends_text.texts if task is not None and isinstance(task.ends_text, StopTexts) else ()
        return bool(after) and any(stop.startswith(after) for stop in stops)  # the stop text was cut off

    def _with_text(self, said: Said, ids: Sequence[int]) -> Iterator[int]:
        """Yield the tokens that the rest of the text in the part begins with."""
        pieces = self._computer.pieces
        bytes_of = self._computer.bytes_of
        torn = _torn(b"".join(map(bytes_of, ids[-3:])))
        rest = self._rest(said).encode()
        if not rest.startswith(torn):
            return
        rest = rest[len(torn) :]
        for length in range(1, min(len(rest), self._computer.longest_piece) + 1):
            yield from pieces.get(rest[:length], ())

    def _rest(self, said: Said) -> str:
        """Return what the part has after the text of some tokens."""
        if said.found is not None:
            now, stored = said.found.completion or "", self._answer
        elif said.texts:
            now, stored = said.texts[0].lstrip(), self._reasoning or ""
        else:
            now, stored = "", self._answer if self._reasoning is None else ""
        now = now.rstrip(TORN)
        return stored[len(now) :] if stored.startswith(now) else ""

    def _markers(self, said: Said, num_tokens: int) -> Sequence[int]:
        """Return the next token of what begins or ends the reasoning."""
        thought = said.thought
        if thought is None or said.found is not None:
            return ()
        task = generates(self._asked.request) if self._asked.request is not None else None
        assert task is not None and task.reasoning is not None
        return thought.closing[:1] if said.texts else task.reasoning.start_ids[num_tokens : num_tokens + 1]


def _torn(text: bytes) -> bytes:
    """Return the beginning of a character at the end of UTF-8.

    >>> _torn("né".encode()[:2]), _torn(b"ne"), _torn("né".encode())
    (b'\\xc3', b'', b'')
    """
    for number in range(1, min(3, len(text)) + 1):
        first = text[-number]
        if first >= 0xC0:  # how many bytes the character has
            return text[-number:] if number < (2 if first < 0xE0 else 3 if first < 0xF0 else 4) else b""
        if first < 0x80:
            return b""
    return b""
