"""Which columns a run's parts have, and what those are that follow from others of the same row.

A completion has the columns of ``COMPLETION_SCHEMA``, of which some modes want some. Behind them stand the columns that
are derived when a part is written: they need no place in the journal.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from job.arrow.json_schema import DoesNotFit, Shape, parse, shape_of
from job.config import AnswerConfig, OutputConfig, SamplingParams
from job.output.parts.journal import COMPLETION_SCHEMA
from job.records import Completion

LOGPROB_COLUMNS = ("token_ids", "token_logprobs", "cumulative_logprob")
CHOICE_COLUMNS = ("choice_logprobs", "choice_probs", "choice_margin")
MAJORITY_COLUMNS = (pa.field("majority", pa.string()), pa.field("majority_share", pa.float64()))
PARSE_OK = pa.field("parse_ok", pa.bool_())


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns that are ours, not the dataset's."""

    include_prompt: bool = True
    logprobs: bool = False
    choices: bool = False
    majority: bool = False
    constrained: bool = False
    json_schema: str | None = None
    """The text of the schema whose values are parsed."""

    @classmethod
    def of(cls, *, answer: AnswerConfig, output: OutputConfig, sampling: SamplingParams) -> "Columns":
        """Return those that a configuration asks for."""
        return cls(
            include_prompt=output.include_prompt,
            logprobs=sampling.logprobs,
            choices=bool(answer.choices),
            majority=answer.aggregate == "majority",
            constrained=answer.constraint is not None,
            json_schema=answer.json_schema,
        )

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any]) -> "Columns":
        """Return those of a run, from its manifest's identity."""
        return cls(**identity["columns"]["own"])

    @property
    def fields(self) -> list[pa.Field]:
        """The columns in the order of the output; those of the dataset come after the first two."""
        derived = [*(MAJORITY_COLUMNS if self.majority else ()), *([PARSE_OK] if self.constrained else ())]
        if self.json_schema is not None:
            derived.append(pa.field("parsed", shape_of(self.json_schema).arrow_type))
        return [*self.of_completions, *derived]

    @property
    def of_completions(self) -> list[pa.Field]:
        """The columns that are a completion's own values: from them it can be made again."""
        left_out = {
            *(() if self.include_prompt else ("prompt",)),
            *(() if self.logprobs else LOGPROB_COLUMNS),
            *(() if self.choices else CHOICE_COLUMNS),
        }
        return [field for field in COMPLETION_SCHEMA if field.name not in left_out]

    @property
    def names(self) -> frozenset[str]:
        """The names that are ours. Others may be those of the dataset, whatever another run calls so."""
        return frozenset(field.name for field in self.fields)

    def schema(self, kept: pa.Schema) -> pa.Schema:
        """Return the schema of parts with these columns of the dataset; their metadata stays."""
        own = self.fields
        return pa.schema([*own[:2], *kept, *own[2:]], metadata=kept.metadata)

    def derive(self, completions: Sequence[Completion]) -> dict[str, pa.Array]:
        """Return the derived columns of completions, all samples of a row among them."""
        derived: dict[str, pa.Array] = {}
        if self.majority:
            winners = majorities(completions)
            values = zip(*(winners[completion.row_idx] for completion in completions), strict=True)
            for field, column in zip(MAJORITY_COLUMNS, values, strict=False):
                derived[field.name] = pa.array(column, field.type)
        if self.constrained:
            shape = None if self.json_schema is None else shape_of(self.json_schema)
            parsed = [parse_completion(completion, shape) for completion in completions]
            derived[PARSE_OK.name] = pa.array([is_ok for is_ok, _ in parsed], PARSE_OK.type)
            if shape is not None:
                derived["parsed"] = pa.array([value for _, value in parsed], shape.arrow_type)
        return derived


def parse_completion(completion: Completion, shape: Shape | None) -> tuple[bool | None, Any]:
    """Return whether a completion is all that its constraint asks for, None for an error, and its value.

    Args:
        shape: of the values, if there is a schema.
    """
    if completion.completion is None:
        return None, None
    if completion.finish_reason != "stop":
        return False, None
    if shape is None:
        return True, None
    try:
        return True, parse(completion.completion, shape)
    except DoesNotFit:
        return False, None


def majorities(completions: Iterable[Completion]) -> dict[int, tuple[str | None, float | None]]:
    """Return for each row the completion that most of its samples have, and the share of samples that have it.

    Of equally many, the one that a lower sample has. Samples with an error or cut by ``max_new_tokens`` have no vote,
    but count in the share. (None, None) if none has a vote.
    """
    votes: dict[int, Counter[str]] = {}
    num_samples = Counter[int]()
    for completion in sorted(completions, key=lambda completion: completion.key):
        counted = votes.setdefault(completion.row_idx, Counter())
        num_samples[completion.row_idx] += 1
        if completion.completion is not None and completion.finish_reason == "stop":
            counted[completion.completion] += 1
    return {row_idx: _winner(counted, num_samples[row_idx]) for row_idx, counted in votes.items()}


def _winner(votes: Counter[str], num_samples: int) -> tuple[str | None, float | None]:
    if not votes:
        return None, None
    text, number = votes.most_common(1)[0]  # of equals the one that was counted first
    return text, number / num_samples
