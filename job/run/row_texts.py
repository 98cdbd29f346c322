"""The generated texts of a row, as it is in a part, and as tokens that are computed now make them.

Where tokens part from the text in the part is found by texts alone: parts have the token ids of few runs.
"""

from collections.abc import Sequence
from dataclasses import replace

from job.modes.reasoning import REASONING
from job.records import Completion, Generation
from job.run.recompute import AskedAgain, Computer
from job.tasks import Score

TORN = "\N{REPLACEMENT CHARACTER}"
"""What an incomplete character at the end of tokens becomes."""

Texts = tuple[str, str]
"""What was generated: the reasoning, and the answer if that was not scored."""


class RowTexts:
    """The texts of one row."""

    def __init__(self, computer: Computer, asked: AskedAgain) -> None:
        """Compare with a row of a part."""
        self._computer, self._asked, self._row = computer, asked, asked.row.completion
        self.is_scored = asked.request is not None and isinstance(asked.request.task, Score)
        """Whether the answer is chosen by its score. Reasoning before it is generated."""
        self._stored = self._texts_of(self._row)

    def is_same(self, found: Completion) -> bool:
        """Whether the generated texts are those in the part, and end for the same reason."""
        ends_alike = self.is_scored or found.finish_reason == self._row.finish_reason
        return ends_alike and self._texts_of(found) == self._stored

    def after(self, generation: Generation, token_ids: Sequence[int]) -> Texts:
        """Return what the first tokens of a completion say."""
        cut = replace(
            generation, token_ids=token_ids, finish_reason="length", logprobs=None, top_ids=None, top_logprobs=None
        )
        return self._texts_of(self._computer.complete(cut, self._asked.prompt))

    def agree(self, texts: Texts) -> bool:
        """Whether the texts in the part may begin with these."""
        (reasoning, answer), (old_reasoning, old_answer) = texts, self._stored
        if answer.rstrip(TORN).strip():
            return reasoning == old_reasoning and self._begins(answer, old_answer)
        return self._begins(reasoning, old_reasoning)

    def rest(self, now: Texts) -> str:
        """Return what the part has after the texts of some tokens."""
        return next((old[len(new) :] for new, old in zip(now, self._stored, strict=True) if len(old) > len(new)), "")

    def grows(self, generation: Generation, ids: Sequence[int], token: int, now: Texts) -> bool:
        """Whether a token after some others adds to their texts ``now`` what the part has there."""
        longer = self.after(generation, [*ids, token])
        if longer != now:
            return self.agree(longer)
        # White space beside the markers of reasoning is left out until more text follows.
        [space] = self._computer.examined.tokenizer.decode([[token]])
        return space.isspace() and (not any(now) or self.rest(now).startswith(space))

    def _texts_of(self, completion: Completion) -> Texts:
        return completion.values.get(REASONING) or "", "" if self.is_scored else completion.completion or ""

    def _begins(self, text: str, stored: str) -> bool:
        text = text.rstrip(TORN)
        if stored.startswith(text) or stored == text.rstrip():
            return True
        after = text[len(stored) :] if text.startswith(stored) else ""
        stops = self._computer.examined.config.sampling.stop
        return bool(after) and any(stop.startswith(after) for stop in stops)  # the stop text was cut off
