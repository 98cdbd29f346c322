"""Choices: each row is answered with one of the given texts, which are scored, not generated.

Scores are log-likelihoods log P(choice | prompt): sums over the choice's tokens. They may be divided by the choice's
length, and calibrated against content-free prompts: Zhao et al., "Calibrate Before Use" (ICML 2021) divide each
choice's probability by the one it has for a row without content ("N/A").
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any, ClassVar

from job.errors import UsageError, require, shorten
from job.modes.choice_tokens import choice_token_ids
from job.modes.mode import Answer, AnswerLength, BoundMode, Mode, Outcome, Probe, Section, Setting, Tokens
from job.modes.options import option
from job.modes.texts import expand_home, names_file, read_lines
from job.records import Generation, SampleKey
from job.tasks import MIN_TEMPERATURE, Score, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from job.config import RunConfig

    Floats = npt.NDArray[np.float64]

NORMALIZATIONS = ("none", "tokens", "bytes")

MAX_BORDERS, BORDER_CHARS = 100, 1000
"""How many choices, and how many characters at the end of a prompt, are checked for tokens that would merge."""


LABELS = "labels"
"""The name of its tally."""

MAX_TALLIED, MAX_SHOWN = 100, 10
"""With more choices, none is counted: the footer of every part would contain them all. At most ten are shown."""


def read_choices(values: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of ``--choices``: as given, or the lines of a file if only one value was given.

    Raises:
        UsageError: there are fewer than two, one is empty, or two are equal.
    """
    texts = tuple(values)
    if len(values) == 1:
        if not names_file(values[0]):
            parts = [part.strip() for part in values[0].split(",")]
            advice = "Give at least two choices, or a file with one per line."
            if len(parts) > 1 and all(parts):
                advice = f"Write {' '.join(f'--choices {shlex.quote(part)}' for part in parts)}."
            raise UsageError(f"--choices got a single value, {values[0]!r}, which is not a file. {advice}")
        texts = read_lines("--choices", expand_home(values[0]))
    seen: set[str] = set()
    for idx, text in enumerate(texts):
        if not text.strip():
            raise UsageError(f"--choices: number {idx + 1} is {text!r}; it must be a non-empty text.")
        if text.strip() in seen:
            raise UsageError(f"--choices: {text!r} is given twice. Leave one out.")
        seen.add(text.strip())
    if values and len(texts) < 2:
        found = "a single line" if texts else "no lines"
        raise UsageError(f"--choices {values[0]}: the file has {found}. Give at least two choices, one per line.")
    return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicesMode(Mode):
    """The most likely of the given texts."""

    name: ClassVar[str] = "choices"
    answers: ClassVar[bool] = True
    decides_end: ClassVar[bool] = True
    ignores: ClassVar[frozenset[str]] = frozenset(
        [
            *("max_new_tokens", "min_new_tokens", "top_p", "top_k", "min_p", "logit_bias", "bad_words"),
            *("repetition_penalty", "presence_penalty", "frequency_penalty", "repetition_detection"),
        ]
    )
    task_category: ClassVar[str | None] = "text-classification"
    empty_preview: ClassVar[Mapping[str, Any]] = {"choices": []}

    choices: tuple[str, ...] = option(
        (),
        "Answer with the most likely of these texts, which are scored, not generated. Repeat, or name a file with one "
        "per line.",
        metavar="TEXT_OR_FILE",
        read=read_choices,
    )
    """Written as the model would write them. The answer leaves out the white space around them: after a prompt that
    ends in "Sentiment:", the choice should be " positive"."""
    choice_normalization: str = option(
        "none",
        "Divide each choice's log-likelihood by its number of tokens or bytes before comparing the choices.",
        choices=NORMALIZATIONS,
    )
    choice_calibration: tuple[str, ...] = option(
        (),
        "Divide probabilities by those for a prompt with this content-free text, such as 'N/A', in place of the row. "
        "Repeat to average over several.",
        metavar="TEXT",
    )

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        need = f"one of {', '.join(NORMALIZATIONS)}"
        require(self.choice_normalization in NORMALIZATIONS, "choice-normalization", self.choice_normalization, need)
        if not self.choices:
            flag = "--choice-calibration" if self.choice_calibration else "--choice-normalization"
            raise UsageError(f"{flag} was given without --choices. Give both, or leave it out.")

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        anchor = setting.prompt_suffix or "\n"
        return BoundChoices(
            tokens=setting.tokens,
            texts=self.choices,
            token_ids=choice_token_ids(setting.tokens, self.choices, anchor),
            normalization=self.choice_normalization,
            probes=tuple(Probe(text=text, option="--choice-calibration") for text in self.choice_calibration),
            temperature=setting.sampling.temperature,
            seed=setting.sampling.seed,
        )

    def measured(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        return [
            pa.field("choice_logprobs", pa.list_(pa.float64())),
            pa.field("choice_probs", pa.list_(pa.float64())),
            pa.field("choice_margin", pa.float64()),
        ]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        for name in ("choice_logprobs", "choice_probs", "choice_margin"):
            yield f"neither {name} nor error, or both", pc.equal(pc.is_null(batch[name]), is_error)
        lengths = [pc.fill_null(pc.list_value_length(batch[name]), -1) for name in ("choice_logprobs", "choice_probs")]
        yield "not one probability for each score", pc.equal(*lengths)

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Count how often each choice was chosen, if there are few enough to be of use."""
        from job.arrow.values import count_values

        return {LABELS: count_values(batch["completion"])} if len(self.choices) <= MAX_TALLIED else {}

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how often each choice was chosen, the most frequent first."""
        labels = sorted(outcome.tallies.get(LABELS, {}).items(), key=lambda item: -item[1])
        shown = [f"{shorten(text)} {number:,}" for text, number in labels[:MAX_SHOWN]]
        more = [f"{len(labels) - MAX_SHOWN:,} others"] if len(labels) > MAX_SHOWN else []
        return [("labels", ", ".join([*shown, *more]))] if labels else []

    def part_metadata(self) -> dict[bytes, bytes]:
        """See ``Mode``."""
        return {b"job.choices": json.dumps([text.strip() for text in self.choices]).encode()}


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundChoices(BoundMode):
    """Everything needed to turn scores into an answer."""

    tokens: Tokens
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    normalization: str = "none"
    probes: tuple[Probe, ...] = ()
    offsets: tuple[float, ...] = ()
    """What calibration subtracts from each score. Empty: nothing."""
    temperature: float = 0.0
    """0: the most likely choice. Otherwise each sample is drawn from the probabilities to the power 1 / temperature."""
    seed: int = 0

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        return Score(choice_ids=self.token_ids)

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Choose, given the log-likelihood of each choice."""
        import numpy as np

        assert generation.numbers is not None, "the engine did not score the choices"
        scores = self._normalized(generation.numbers) - np.array(self.offsets or 0.0)
        probs = np.exp(_log_softmax(scores))
        best = int(scores.argmax()) if self.temperature == 0 else self._draw(scores, generation.request.key)
        second, first = np.sort(probs)[-2:]
        values = {
            "choice_logprobs": list(generation.numbers),
            "choice_probs": probs.tolist(),
            "choice_margin": float(first - second),
        }
        num_tokens = len(self.token_ids[best])
        completion, values = self.texts[best].strip(), {**answer.values, **values}
        return replace(answer, completion=completion, num_completion_tokens=num_tokens, values=values)

    def length(self, length: AnswerLength) -> AnswerLength:
        """See ``BoundMode``."""
        longest = max(map(len, self.token_ids))
        return AnswerLength(num_tokens=longest, what="The longest of --choices, in tokens,")

    def calibrated(self, probes: Sequence[Generation]) -> "BoundChoices":
        """Return choices that correct for what content-free prompts prefer on average."""
        import numpy as np

        each = [_log_softmax(self._normalized(probe.numbers or ())) for probe in probes]
        # In log space: the probability of a long choice may underflow.
        offsets = np.logaddexp.reduce(each, axis=0) - np.log(len(each))
        return replace(self, offsets=tuple(offsets.tolist()))

    def notes_on(self, first_prompt: Callable[[], str | None]) -> tuple[str, ...]:
        """See ``BoundMode``."""
        prompt = first_prompt()
        border = prompt and self.border_note(prompt)
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
                return (
                    f"after the first prompt, choice {text!r} is scored as {odd}, but in running text it would be "
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
