"""The values that pass from stage to stage. All are frozen, and none knows where it goes next.

source -> RowBlock of Row -> prompts -> Prompt -> tokenization -> Request -> engine -> Generation
       -> tokenization -> Completion -> journal -> shard
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from job.tasks import Generate, ScoreText, Task

SampleKey = tuple[int, int]
"""(row_idx, sample_idx): names one completion of the run."""

PartialKey = tuple[int, int, int]
"""(row_idx, sample_idx, attempt): names one draw of a completion."""

KEY_BYTES = 16
"""The size of the hash of what a row asks."""

CUT_REASONS = ("length", "repetition")
"""The finish reasons of completions that the model did not end: at their token limit, or in a loop."""


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no completion. ``str`` gives the text of the ``error`` column: ``kind: detail``.

    >>> str(RowError("null_prompt", "column 'question' is null"))
    "null_prompt: column 'question' is null"
    """

    kind: str
    """One word, for counting errors and for retrying one kind of them."""
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"

    @classmethod
    def parse(cls, text: str) -> "RowError":
        """Return the error from its text in the ``error`` column.

        >>> RowError.parse("null_prompt: column 'question' is null").kind
        'null_prompt'
        """
        kind, _, detail = text.partition(": ")
        return cls(kind, detail)


class RowRejected(Exception):
    """The row cannot become a prompt."""

    def __init__(self, kind: str, detail: str, text: str | None = None) -> None:
        """Hold the error and, if there is one, the text of the prompt, which the error row will show."""
        super().__init__(detail)
        self.row_error, self.text = RowError(kind, detail), text


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the dataset. It has ``values`` or an ``error``: a line that cannot be parsed is still a row."""

    row_idx: int
    values: Mapping[str, Any]
    error: RowError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Consecutive rows, and the columns that the user keeps, in Arrow so that their types survive."""

    rows: Sequence[Row]
    kept: Any
    """pyarrow.Table with ``len(rows)`` rows and the kept columns (possibly none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The text that the model will read. If there is an ``error``, ``text`` is None unless it could be rendered."""

    row_idx: int
    text: str | None
    content_span: tuple[int, int] | None = None
    """Where the row's own content is in ``text``: the part that may be cut when the prompt is too long."""
    prefill: str = ""
    """The end of ``text`` that is the beginning of the answer."""
    literal_spans: Sequence[tuple[int, int]] = ()
    """Where ``text`` has special tokens that are to be read as plain text, in order."""
    error: RowError | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    """The row's values in the columns that the run's modes read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """What has been generated of a completion that is not finished, or a later piece of that.

    Draws depend on the position, not on who draws, so that another process can go on where this ends.
    """

    row_idx: int
    sample_idx: int
    attempt: int = 0
    start: int = 0
    """The number of tokens of the completion before ``token_ids``."""
    token_ids: Sequence[int]
    logprobs: Sequence[float] = ()
    """Their log probabilities, if the request asks for them."""
    tops: bytes | bytearray = b""
    """The most likely tokens in place of each of them, packed, if the request asks for them."""

    @property
    def key(self) -> PartialKey:
        """The identity of the completion, and how often it has been drawn before."""
        return (self.row_idx, self.sample_idx, self.attempt)

    def after(self, num_tokens: int) -> "Partial":
        """Return what it has of a completion after the first tokens of it. It must itself begin with the first one."""
        size = len(self.tops) // max(1, len(self.token_ids))
        return replace(
            self,
            start=num_tokens,
            token_ids=self.token_ids[num_tokens:],
            logprobs=self.logprobs[num_tokens:],
            tops=self.tops[size * num_tokens :],
        )

    @property
    def end(self) -> int:
        """The number of tokens of the completion up to the end of ``token_ids``."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to compute. The engine sees nothing else of a row."""

    row_idx: int
    sample_idx: int
    prompt_ids: Sequence[int]
    task: Task
    decoder_ids: tuple[int, ...] = ()
    """What the decoder of an encoder-decoder begins with. Empty: what the model's files say."""
    num_cut_tokens: int = 0
    """How many tokens were cut off its prompt, which was too long."""
    attempt: int = 0
    """How often the completion has been drawn before. Its task has a seed of its own."""
    begun: Partial | None = None
    """What an earlier process has generated of it, from the first token on. An engine may go on there, or begin again:
    the completion is the same."""

    @property
    def key(self) -> SampleKey:
        """The identity of the completion."""
        return (self.row_idx, self.sample_idx)

    @property
    def partial_key(self) -> PartialKey:
        """The identity of the completion, and how often it has been drawn before."""
        return (self.row_idx, self.sample_idx, self.attempt)

    @property
    def given_ids(self) -> Sequence[int]:
        """All tokens that the engine is given: the prompt, and a text that is to be scored."""
        return [*self.prompt_ids, *self.task.text_ids] if isinstance(self.task, ScoreText) else self.prompt_ids

    def scored(self, logprobs: Sequence[float]) -> "Generation":
        """Return the result of a request to score a text."""
        assert isinstance(self.task, ScoreText)
        return Generation(request=self, token_ids=self.task.text_ids, finish_reason="stop", logprobs=logprobs)

    def pooled(self, vector: Any) -> "Generation":
        """Return the result of a request for a vector, [D] float32."""
        return Generation(request=self, token_ids=[], finish_reason="stop", vector=vector)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The engine's result for a request."""

    request: Request
    token_ids: Sequence[int]
    """Generated ids, including the end-of-sequence id if there was one."""
    finish_reason: str | None
    """``stop``, one of ``CUT_REASONS``, or None if there is an error."""
    error: RowError | None = None
    logprobs: Sequence[float] | None = None
    """Natural log probabilities of ``token_ids`` in the model's own distribution, if the request asked for them."""
    top_ids: Any = None
    """[T, K] int32: the most likely tokens in place of each token, the likeliest first, if the request asked for K."""
    top_logprobs: Any = None
    """[T, K] float32: their log probabilities."""
    numbers: Sequence[float] | None = None
    """The result of a task that asks for numbers; then ``token_ids`` is empty. For ``Score``: the log-likelihood of
    each choice after the prompt."""
    vector: Any = None
    """[D] float32: the result of ``Pool``; then ``token_ids`` is empty."""

    @property
    def text_ids(self) -> Sequence[int]:
        """The tokens whose text is the completion: a stop token at its end is left out."""
        task = self.request.task
        stop_token_ids = task.params.stop_token_ids if isinstance(task, Generate) else ()
        has_stopped = self.finish_reason == "stop" and bool(stop_token_ids) and bool(self.token_ids)
        return self.token_ids[:-1] if has_stopped and self.token_ids[-1] in stop_token_ids else self.token_ids


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
    """The values of the columns that the run's modes measure, by name. Missing ones are null."""

    @property
    def key(self) -> SampleKey:
        """The identity of the completion."""
        return (self.row_idx, self.sample_idx)
