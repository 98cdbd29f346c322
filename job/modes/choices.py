"""Choices: each row is answered with one of the given texts, which are scored, not generated.

Scores are log-likelihoods log P(choice | prompt): sums over the choice's tokens. They may be divided by the choice's
length, and calibrated against content-free prompts: Zhao et al., "Calibrate Before Use" (ICML 2021) divide each
choice's probability by the one it has for a row without content ("N/A").
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from job.errors import UsageError, require, shorten
from job.modes.choice_tokens import choice_token_ids, gap_token_ids
from job.modes.mode import BoundMode, LabelColumn, Mode, Outcome, Probe, Setting
from job.modes.options import option
from job.modes.scored_choices import BoundChoices
from job.modes.texts import expand_home, names_file, read_lines
from job.records import Completion

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import RunConfig

NORMALIZATIONS = ("none", "tokens", "bytes")

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
    serves_encoder_decoders: ClassVar[bool] = False
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
        may_be_empty=False,
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
    choice_mean: bool = option(
        False,
        "With --num-samples: also write the mean of a row's probabilities over its samples, and the choice for which "
        "it is highest.",
    )

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        need = f"one of {', '.join(NORMALIZATIONS)}"
        require(self.choice_normalization in NORMALIZATIONS, "choice-normalization", self.choice_normalization, need)
        if not self.choices:
            raise UsageError(f"{self.flag} was given without --choices. Give both, or leave it out.")
        reasons = any(mode.always_generates for mode in config.active_modes)
        if self.choice_calibration and reasons:
            raise UsageError(
                "--choice-calibration and reasoning were asked for together. Leave one of them out: a prompt without "
                "content gives nothing to reason about."
            )
        if self.choice_mean and (config.sampling.num_samples == 1 or not reasons):
            raise UsageError(
                "--choice-mean needs several lines of thought. Set --num-samples, with --reasoning or "
                "--max-reasoning-tokens."
            )

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        anchor = setting.before_answer or setting.prompt_suffix or "\n"
        return BoundChoices(
            tokens=setting.tokens,
            texts=self.choices,
            token_ids=choice_token_ids(setting.tokens, self.choices, anchor),
            before_answer=setting.before_answer,
            gap_ids=gap_token_ids(setting.tokens, setting.before_answer),
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

    def derived(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        means = [pa.field("mean_choice", pa.string()), pa.field("mean_choice_probs", pa.list_(pa.float64()))]
        return means if self.choice_mean else []

    def derive(self, completions: Sequence[Completion], earlier: "Mapping[str, pa.Array]") -> "Mapping[str, pa.Array]":
        """See ``Mode``. Samples with an error do not count."""
        if not self.choice_mean:
            return {}
        import numpy as np
        import pyarrow as pa

        probs_of: dict[int, list[Sequence[float]]] = {}
        for completion in completions:
            if completion.error is None:
                probs_of.setdefault(completion.row_idx, []).append(completion.values["choice_probs"])
        means = {row_idx: np.mean(probs, axis=0) for row_idx, probs in probs_of.items()}
        rows = [means.get(completion.row_idx) for completion in completions]
        return {
            "mean_choice": pa.array(
                [None if mean is None else self.choices[int(mean.argmax())].strip() for mean in rows], pa.string()
            ),
            "mean_choice_probs": pa.array(
                [None if mean is None else mean.tolist() for mean in rows], pa.list_(pa.float64())
            ),
        }

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

    def label_columns(self) -> Sequence[LabelColumn]:
        """See ``Mode``."""
        classes = tuple(text.strip() for text in self.choices)
        label = LabelColumn(name="completion", classes=classes, probs="choice_probs", rank=2)
        mean = LabelColumn(name="mean_choice", classes=classes, probs="mean_choice_probs", is_of_row=True, rank=4)
        return [label, *([mean] if self.choice_mean else [])]

    def part_metadata(self) -> dict[bytes, bytes]:
        """See ``Mode``."""
        return {b"job.choices": json.dumps([text.strip() for text in self.choices]).encode()}
