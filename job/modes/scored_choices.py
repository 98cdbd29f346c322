"""Choices that are bound to a tokenizer: what each row is asked, and how its scores become an answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

from job.modes.mode import Answer, AnswerLength, BoundMode, Probe, Section, Tokens
from job.records import Generation, SampleKey
from job.tasks import MIN_TEMPERATURE, Generate, Score, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

MAX_BORDERS, BORDER_CHARS = 100, 1000
"""How many choices, and how many characters at the end of a prompt, are checked for tokens that would merge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundChoices(BoundMode):
    """Everything needed to turn scores into an answer."""

    tokens: Tokens
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    before_answer: str = ""
    """The end of the reasoning that choices follow. Empty: they follow the prompt."""
    gap_ids: tuple[int, ...] = ()
    """The tokens of what it has behind the end marker."""
    normalization: str = "none"
    probes: tuple[Probe, ...] = ()
    offsets: tuple[float, ...] = ()
    """What calibration subtracts from each score. Empty: nothing."""
    temperature: float = 0.0
    """0: the most likely choice. Otherwise each sample is drawn from the probabilities to the power 1 / temperature."""
    seed: int = 0

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        if not isinstance(task, Generate) or task.reasoning is None:
            return Score(choice_ids=self.token_ids)
        most = task.params.max_new_tokens if task.reasoning.max_tokens is None else task.reasoning.max_tokens
        longest = most + task.reasoning.num_marker_tokens
        least = min(task.params.min_new_tokens, longest)  # it may be more: --max-new-tokens bounds it, not the budget
        reason = replace(
            task,
            reasoning=replace(task.reasoning, max_tokens=most),
            params=replace(task.params, max_new_tokens=longest, min_new_tokens=least),
            ends_at_answer=True,
        )
        return Score(choice_ids=self.token_ids, reason=reason, gap_ids=self.gap_ids)

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Choose, given the log-likelihood of each choice."""
        import numpy as np

        assert generation.numbers is not None, "the engine did not score the choices"
        scores = self._normalized(generation.numbers) - np.array(self.offsets or 0.0)
        probs = np.exp(_log_softmax(scores))
        draws = self.temperature > 0 and not self.before_answer  # reasoning is drawn instead
        best = self._draw(scores, generation.request.key) if draws else int(scores.argmax())
        second, first = np.sort(probs)[-2:]
        values = {
            "choice_logprobs": list(generation.numbers),
            "choice_probs": probs.tolist(),
            "choice_margin": float(first - second),
        }
        num_tokens = len(generation.token_ids) + len(self.token_ids[best])
        completion, values = self.texts[best].strip(), {**answer.values, **values}
        return replace(answer, completion=completion, num_completion_tokens=num_tokens, values=values)

    def length(self, length: AnswerLength) -> AnswerLength:
        """See ``BoundMode``."""
        longest = max(map(len, self.token_ids))
        if not self.before_answer:
            return AnswerLength(num_tokens=longest, what="The longest of --choices, in tokens,")
        what = f"{length.what_reasoning} with the longest of --choices, in tokens,"
        return AnswerLength(num_tokens=length.num_reasoning + len(self.gap_ids) + longest, what=what)

    def calibrated(self, probes: Sequence[Generation]) -> "BoundChoices":
        """Return choices that correct for what content-free prompts prefer on average."""
        import numpy as np

        each = [_log_softmax(self._normalized(probe.numbers or ())) for probe in probes]
        # In log space: the probability of a long choice may underflow.
        offsets = np.logaddexp.reduce(each, axis=0) - np.log(len(each))
        return replace(self, offsets=tuple(offsets.tolist()))

    def notes_on(self, first_prompt: Callable[[], str | None]) -> tuple[str, ...]:
        """See ``BoundMode``."""
        before = self.before_answer or first_prompt()
        border = before and self.border_note(before)
        return tuple(note for note in (self.prefix_note(), border) if note)

    def sections(self) -> Sequence[Section]:
        """Show how each choice is tokenized."""
        pairs = [(text, ids, self.tokens.names(ids)) for text, ids in zip(self.texts, self.token_ids, strict=True)]
        shown = [{"text": text, "token_ids": list(ids), "tokens": names} for text, ids, names in pairs]
        lines = [f"{text!r} is {_count(names)}" for text, _, names in pairs]
        return [Section(title="choices", lines=lines, values={"choices": shown})]

    def prefix_note(self) -> str | None:
        """Return a note if one choice is a prefix of another: the longer one can never be the more likely."""
        if self.normalization != "none":
            return None
        in_order = sorted(zip(self.token_ids, self.texts, strict=True))  # after a prefix comes what begins with it
        for (short_ids, short), (long_ids, long) in pairwise(in_order):
            if long_ids[: len(short_ids)] == short_ids:
                return (
                    f"choice {long!r} begins with choice {short!r}, so it can never be the more likely of the two; "
                    "reword one, or use --choice-normalization tokens"
                )
        return None

    def border_note(self, prompt: str) -> str | None:
        """Return a note if the tokenizer would merge the end of a prompt with the start of a choice.

        The scores are those of the choice's own tokens after the prompt's. Where text is rarely split in this way, as
        between "Answer: " and "yes", a model has hardly ever seen such tokens.
        """
        end = prompt[-BORDER_CHARS:]
        end_ids = self.tokens.encode(end)
        for text, ids in zip(self.texts[:MAX_BORDERS], self.token_ids, strict=False):
            joined, scored = self.tokens.encode(end + text), [*end_ids, *ids]
            if joined != scored:
                num_same = next(idx for idx, pair in enumerate(zip_longest(joined, scored)) if pair[0] != pair[1])
                usual, odd = (self.tokens.names(tokens[num_same:]) for tokens in (joined, scored))
                advice = "end prompts without the space and begin" if end.endswith(" ") else "perhaps begin"
                where = "the reasoning" if self.before_answer else "the first prompt"
                return (
                    f"after {where}, choice {text!r} is scored as {odd}, but in running text it would be "
                    f"{usual}; {advice} choices with a space"
                )
        return None

    def _normalized(self, logprobs: Sequence[float]) -> "Floats":
        import numpy as np

        lengths = {
            "none": [1] * len(self.texts),
            "tokens": [len(ids) for ids in self.token_ids],
            "bytes": [len(text.encode()) for text in self.texts],
        }
        return np.array(logprobs, np.float64) / np.array(lengths[self.normalization], np.float64)

    def _draw(self, scores: "Floats", key: SampleKey) -> int:
        """Draw a choice; depends only on the scores and (seed, row_idx, sample_idx) (law 5)."""
        import numpy as np

        from job.draws import row_bits, uniform

        borders = np.exp(_log_softmax(scores / max(self.temperature, MIN_TEMPERATURE))).cumsum()
        draw = uniform(row_bits(self.seed, [key], [0]))[0]
        return min(int(np.searchsorted(borders, draw, side="right")), len(scores) - 1)


def _count(tokens: Sequence[str]) -> str:
    return f"{'1 token' if len(tokens) == 1 else f'{len(tokens):,} tokens'}: {' + '.join(tokens)}"


def _log_softmax(scores: "Floats") -> "Floats":
    import numpy as np

    logprobs: Floats = scores - np.logaddexp.reduce(scores)
    return logprobs
