"""The values that travel from stage to stage. All frozen; none knows where it goes next.

source -> RowBlock of Row -> prompts -> Prompt -> tokenization -> Request -> engine -> Generation
       -> tokenization -> Completion -> journal -> shard
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from job.tasks import Task

SampleKey = tuple[int, int]
"""(row_idx, sample_idx): names one completion of the run."""


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no completion. ``str`` gives the text of the ``error`` column: ``kind: detail``.

    >>> str(RowError("null_prompt", "column 'question' is null"))
    "null_prompt: column 'question' is null"
    """

    kind: str
    """One word, for counting and for retrying one kind."""
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"

    @classmethod
    def parse(cls, text: str) -> "RowError":
        """Return the error that a text of the ``error`` column names.

        >>> RowError.parse("null_prompt: column 'question' is null").kind
        'null_prompt'
        """
        kind, _, detail = text.partition(": ")
        return cls(kind, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the dataset. Either ``values`` or ``error``: a line that cannot be parsed is still a row."""

    row_idx: int
    values: Mapping[str, Any]
    error: RowError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Consecutive rows, and the columns that the user keeps, as Arrow so that their types survive."""

    rows: Sequence[Row]
    kept: Any
    """pyarrow.Table with ``len(rows)`` rows and the kept columns (perhaps none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model will read, as text. ``text`` is None if there is an ``error``, unless it could be rendered."""

    row_idx: int
    text: str | None
    content_span: tuple[int, int] | None = None
    """Where in ``text`` the row's own content stands: what may be cut when the prompt is too long."""
    error: RowError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to compute. The engine sees this and nothing else of a row."""

    row_idx: int
    sample_idx: int
    prompt_ids: Sequence[int]
    task: Task

    @property
    def key(self) -> SampleKey:
        """The identity of the completion."""
        return (self.row_idx, self.sample_idx)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What the engine made of a request."""

    request: Request
    token_ids: Sequence[int]
    """Generated ids, the end-of-sequence id included if there was one."""
    finish_reason: str | None
    """``stop``, ``length``, or None if there is an error."""
    error: RowError | None = None
    logprobs: Sequence[float] | None = None
    """Natural logarithms of the probabilities of ``token_ids`` in the model's own distribution, if they were asked."""
    choice_logprobs: Sequence[float] | None = None
    """The log-likelihood of each choice after the prompt, if there are choices; ``token_ids`` is empty then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One row of the output, without the kept columns."""

    row_idx: int
    sample_idx: int
    prompt: str | None
    completion: str | None
    finish_reason: str | None
    num_prompt_tokens: int
    num_completion_tokens: int
    error: RowError | None
    values: Mapping[str, Any] = field(default_factory=dict)
    """The values of the columns that the run's modes measure, by name. Those that are missing are null."""

    @property
    def key(self) -> SampleKey:
        """The identity of the completion."""
        return (self.row_idx, self.sample_idx)
