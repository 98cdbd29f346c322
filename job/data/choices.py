"""Choices: the texts of which a completion is one. From what the user wrote to token ids, and from scores to an answer.

Scores are log-likelihoods log P(choice | prompt): sums over the choice's tokens. They may be divided by the choice's
length, and calibrated against content-free prompts: Zhao et al., "Calibrate Before Use" (ICML 2021) divide each
choice's probability by the one it has when the row says nothing ("N/A").
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from job.config import AnswerConfig, SamplingParams
from job.draws import row_bits, uniform
from job.errors import UsageError
from job.records import SampleKey

Floats = npt.NDArray[np.float64]

MAX_BORDERS, BORDER_CHARS = 100, 1000
"""How many choices, and how much of a prompt's end, are looked at for tokens that would join."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The answer to a row."""

    text: str
    num_tokens: int
    probs: tuple[float, ...]
    """Of all choices, in their order."""
    margin: float
    """The largest less the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """All that makes an answer of scores."""

    texts: tuple[str, ...]
    """As the model would write them. White space around them is no part of the answer: a prompt that ends in
    "Sentiment:" wants " positive" behind it."""
    token_ids: tuple[tuple[int, ...], ...]
    normalization: str = "none"
    offsets: tuple[float, ...] = ()
    """What calibration takes from each score; empty: nothing."""
    temperature: float = 0.0
    """0: the likeliest. Else each sample is drawn: from probabilities to the power of 1 / temperature."""
    seed: int = 0

    def label(self, logprobs: Sequence[float], key: SampleKey) -> Label:
        """Choose, given the log-likelihood of each choice."""
        scores = self._normalized(logprobs) - np.array(self.offsets or 0.0)
        probs = _softmax(scores)
        best = int(scores.argmax()) if self.temperature == 0 else self._draw(scores, key)
        second, first = np.sort(probs)[-2:]
        return Label(
            text=self.texts[best].strip(),
            num_tokens=len(self.token_ids[best]),
            probs=tuple(probs.tolist()),
            margin=float(first - second),
        )

    def calibrated(self, logprobs: Sequence[Sequence[float]]) -> "Choices":
        """Return choices that make up for what content-free prompts prefer.

        Args:
            logprobs: of each choice, after each of these prompts; their probabilities are averaged.
        """
        each = [_log_softmax(self._normalized(values)) for values in logprobs]
        # In logarithms: the probability of a long choice may be too small for a number.
        offsets = np.logaddexp.reduce(each, axis=0) - np.log(len(each))
        return replace(self, offsets=tuple(offsets.tolist()))

    def _normalized(self, logprobs: Sequence[float]) -> Floats:
        lengths = {
            "none": [1] * len(self.texts),
            "tokens": [len(ids) for ids in self.token_ids],
            "bytes": [len(text.encode()) for text in self.texts],
        }
        return np.array(logprobs, np.float64) / np.array(lengths[self.normalization], np.float64)

    def _draw(self, scores: Floats, key: SampleKey) -> int:
        """Draw from (seed, row_idx, sample_idx) alone (law 5)."""
        borders = _softmax(scores / self.temperature).cumsum()
        draw = uniform(row_bits(self.seed, [key], [0]))[0]
        return min(int(np.searchsorted(borders, draw, side="right")), len(scores) - 1)


def build_choices(answer: AnswerConfig, sampling: SamplingParams, tokenizer: Any, suffix: str) -> Choices | None:
    """Return the choices that a run asks for, with their tokens; None if it has none.

    Args:
        suffix: what the chat template writes behind the user's message; empty without one.

    Raises:
        UsageError: they make no sense, see ``choice_token_ids``.
    """
    if not answer.choices:
        return None
    if sampling.num_samples > 1 and sampling.temperature == 0:
        raise UsageError(
            f"--num-samples {sampling.num_samples} with --choices would give the same answer each time. "
            "Set --temperature to draw from the choices' probabilities."
        )
    return Choices(
        texts=answer.choices,
        token_ids=choice_token_ids(tokenizer, answer.choices, suffix or "\n"),
        normalization=answer.choice_normalization,
        temperature=sampling.temperature,
        seed=sampling.seed,
    )


def read_choices(values: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of ``--choices``: as given, or the lines of a file if only one value was given.

    Raises:
        UsageError: fewer than two, an empty one, two equal ones.
    """
    texts = tuple(values)
    if len(values) == 1:
        texts = _lines_of(values[0])
    seen: set[str] = set()
    for idx, text in enumerate(texts):
        if not text.strip():
            raise UsageError(f"--choices: number {idx + 1} is {text!r}; it must be a text that is not empty.")
        if text.strip() in seen:
            raise UsageError(f"--choices: {text!r} is given twice. Leave one out.")
        seen.add(text.strip())
    if len(texts) < 2:
        raise UsageError(f"--choices: {len(texts)} is given. Give at least two, or a file with one per line.")
    return texts


def _lines_of(value: str) -> tuple[str, ...]:
    path = Path(value)
    try:
        if not path.is_file():
            raise UsageError(f"--choices {value!r} is alone and no file. Give at least two, or a file of them.")
        lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, ValueError) as error:
        raise UsageError(f"--choices {value}: {error}.") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(lines)


def choice_token_ids(tokenizer: Any, texts: Sequence[str], anchor: str) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each choice as it stands behind a prompt.

    The tokens of a prompt are those that it has alone, and the choice's follow them; nothing is joined across the
    border. A choice reads exactly as it was written: it is encoded behind ``anchor``, because encoded alone many
    tokenizers (SentencePiece) put a space before it.

    Args:
        anchor: what prompts end with: the end of the chat template, or a line's end.

    Raises:
        UsageError: two choices have the same tokens, or one has none.
    """
    anchor_ids = _encode(tokenizer, anchor)
    ids_of: dict[tuple[int, ...], str] = {}
    for text in texts:
        together = _encode(tokenizer, anchor + text)
        is_split = together[: len(anchor_ids)] == anchor_ids
        ids = tuple(together[len(anchor_ids) :] if is_split else _encode(tokenizer, text))
        if not ids:
            raise UsageError(f"--choices: {text!r} has no tokens.")
        if ids in ids_of:
            raise UsageError(f"--choices: {ids_of[ids]!r} and {text!r} are the same to the tokenizer. Leave one out.")
        ids_of[ids] = text
    return tuple(ids_of)


def notes_on(choices: Choices, tokenizer: Any, first_prompt: str | None) -> tuple[str, ...]:
    """Return what the user should know of the choices.

    Args:
        first_prompt: of the first row; the others end like it, as a rule.
    """
    border = first_prompt and border_note(tokenizer, choices, first_prompt)
    return tuple(note for note in (prefix_note(choices), border) if note)


def prefix_note(choices: Choices) -> str | None:
    """Return what to tell the user if one choice begins another: the longer one can never be likelier."""
    if choices.normalization != "none":
        return None
    in_order = sorted(zip(choices.token_ids, choices.texts, strict=True))  # what begins with another follows it
    for (short_ids, short), (long_ids, long) in pairwise(in_order):
        if long_ids[: len(short_ids)] == short_ids:
            return (
                f"choice {long!r} begins with choice {short!r}, so it can never be the likelier of the two; "
                "reword one, or use --choice-normalization tokens"
            )
    return None


def border_note(tokenizer: Any, choices: Choices, prompt: str) -> str | None:
    """Return what to tell the user if the tokenizer would join the end of a prompt with a choice into other tokens.

    What is scored are the choice's own tokens behind the prompt's. Where text is seldom cut so, as between "Answer: "
    and "yes", a model has hardly ever seen them apart.
    """
    end = prompt[-BORDER_CHARS:]
    end_ids = _encode(tokenizer, end)
    for text, ids in zip(choices.texts[:MAX_BORDERS], choices.token_ids, strict=False):
        joined, scored = _encode(tokenizer, end + text), [*end_ids, *ids]
        if joined != scored:
            num_same = next(idx for idx, pair in enumerate(zip_longest(joined, scored)) if pair[0] != pair[1])
            usual, odd = (tokenizer.convert_ids_to_tokens(tokens[num_same:]) for tokens in (joined, scored))
            advice = "end prompts without the space and begin" if end.endswith(" ") else "perhaps begin"
            return (
                f"behind the first prompt, choice {text!r} is scored as {odd}, but in running text it would be "
                f"{usual}; {advice} choices with a space"
            )
    return None


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _softmax(scores: Floats) -> Floats:
    probs: Floats = np.exp(_log_softmax(scores))
    return probs


def _log_softmax(scores: Floats) -> Floats:
    logprobs: Floats = scores - np.logaddexp.reduce(scores)
    return logprobs
