"""The protocol of a kind of answer, from its options to its columns.

A ``Mode`` is a frozen dataclass whose fields are its options, with the values that the user gave. From these alone,
without a tokenizer or a model, it knows its columns, how they are checked, and what the card shows, so a run can be
verified and exported from its manifest. ``bind`` returns the ``BoundMode`` that knows the tokenizer: it defines the
engine's task and turns a generation into an answer. ``--help`` imports all modes, so they import nothing
heavy (numpy, pyarrow, ...) at load.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from job.errors import Doubt
from job.modes.answer_length import AnswerLength as AnswerLength
from job.modes.outcome import LabelColumn as LabelColumn
from job.modes.outcome import Outcome as Outcome
from job.modes.setting import Setting as Setting
from job.modes.setting import Tokens as Tokens
from job.records import Completion, Generation, Prompt, Request
from job.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import PromptConfig, RunConfig
    from job.tasks.head import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of a generation without an error. The modes of a run build it, one after the other."""

    completion: str | None
    finish_reason: str | None
    num_completion_tokens: int
    token_ids: Sequence[int] = ()
    """The generated tokens that ``completion`` is the text of."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The values of the measured columns, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What a preview shows about a mode."""

    title: str
    """At most ten characters."""
    lines: Sequence[str]
    values: Mapping[str, Any] = field(default_factory=dict)
    """The same as JSON values, under stable names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A text that takes the place of a row's own and is computed before the first row."""

    text: str
    option: str
    """The option that asks for it, for messages."""


class BoundMode:
    """A mode that knows the tokenizer. The methods of this class change nothing."""

    notes: tuple[str, ...] = ()
    """What the user should know before waiting for the result."""
    judges: bool = False
    """Whether ``judge`` and ``again`` do anything."""
    probes: tuple[Probe, ...] = ()
    """What it needs computed before the first row; see ``calibrated``."""

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """Return what to ask the engine for a row, based on the task from the modes before this one.

        Args:
            values: the row's values in ``Mode.columns``.

        Raises:
            RowRejected: a value cannot be used; the row becomes an error row.
        """
        return task

    def given(self, request: Request, prompt: Prompt) -> Request:
        """Return the request for a row, based on that from the modes before this one, whose task ``refine`` returned.

        Raises:
            RowRejected: there can be none.
        """
        return request

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Return the answer to a row, given the answer from the modes before this one."""
        return answer

    def judge(self, completion: Completion, request: Request, *, is_accepted: bool) -> Completion:
        """Return an output row with what this mode adds, given whether all modes accept it."""
        return completion

    def again(self, request: Request) -> Request | None:
        """Return the request that takes the place of one whose completion was not accepted; None to keep that."""
        return None

    def length(self, length: AnswerLength) -> AnswerLength:
        """Return how long an answer may be, given the length from the modes before this one."""
        return length

    def calibrated(self, probes: Sequence[Generation]) -> "BoundMode":
        """Return this mode, calibrated with the results of its ``probes``."""
        return self

    def notes_on(self, first_prompt: Callable[[], str | None]) -> tuple[str, ...]:
        """Return notes for the user. They may depend on the first row's prompt: the others usually end like it.

        Args:
            first_prompt: reads that prompt from the dataset, which takes time; None if the row has none.
        """
        return self.notes

    def sections(self) -> Sequence[Section]:
        """Return what a preview shows."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One kind of answer, with the values of its options. The methods of this class add nothing."""

    name: ClassVar[str]
    answers: ClassVar[bool] = False
    """Whether it decides what the engine computes. One mode of a run does; the others refine or add to it."""
    decides_end: ClassVar[bool] = False
    """Whether it decides where a completion ends. At most one mode of a run does, and then without stop strings."""
    ignores: ClassVar[frozenset[str]] = frozenset()
    """The sampling options that have no effect on its answers."""
    follows_reasoning: ClassVar[bool] = True
    """Whether its answer may come after reasoning."""
    serves_encoder_decoders: ClassVar[bool] = True
    """Whether it works with a model whose answers do not continue the prompt."""
    serves_beams: ClassVar[bool] = True
    """Whether its options work with completions that are searched for with beams."""
    always_generates: ClassVar[bool] = False
    """Whether the model generates tokens whatever the answer is, so that no sampling option is without effect."""
    follow: ClassVar[frozenset[str]] = frozenset()
    """Measured numbers that follow from others, so that they need not be compared when a row is recomputed."""
    task_category: ClassVar[str | None] = None
    """Hugging Face's name for it in a dataset card."""
    content: ClassVar[str | None] = None
    """What a dataset card calls its answers, if not completions."""
    empty_preview: ClassVar[Mapping[str, Any]] = {}
    """The JSON values of a preview if the mode is not asked for."""

    @property
    def draws_nothing(self) -> bool:
        """Whether its answers need no drawn token. (A mode that ``always_generates`` may draw some before them.)"""
        return "max_new_tokens" in self.ignores

    @property
    def is_asked(self) -> bool:
        """Whether the options ask for this mode."""
        return bool(self.given())

    @property
    def flag(self) -> str:
        """The option that asks for it, for messages."""
        return "--" + next(iter(self.given()), self.name).replace("_", "-")

    @property
    def before_answer(self) -> str:
        """See ``Setting``."""
        return ""

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Make it from a manifest's JSON values. Those unknown to this version are ignored."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})

    def columns(self) -> tuple[str, ...]:
        """Return the columns of the dataset whose values ``BoundMode.refine`` needs."""
        return ()

    def varies(self) -> frozenset[str]:
        """Return the sampling options that requests may have other values for than the run."""
        return frozenset()

    def check(self, config: "RunConfig") -> None:
        """Check the mode against the other options of a run, if it is asked for.

        Raises:
            UsageError: they contradict each other.
        """

    def prompts(self, config: "PromptConfig") -> "PromptConfig":
        """Return how rows become prompts, based on what the options say, if the mode is asked for."""
        return config

    def check_schema(self, schema: "pa.Schema") -> None:
        """Check the types of ``columns``, if the mode is asked for.

        Raises:
            UsageError: one of them cannot have what the mode needs in any row.
        """

    def headed(self, head: "Head") -> Self:
        """Return the mode with what a model says that gives vectors or classes; see ``settled``."""
        return self

    def settled(
        self, config: "RunConfig", tokens: Tokens, template: str | None, found: "Sequence[Mode] | None"
    ) -> Self:
        """Return the mode with what its options leave to the model. All modes are asked, active or not.

        Args:
            config: its ``max_model_len`` is the model's, if none was given.
            template: the text of the chat template; None if prompts are plain text.
            found: the active modes of the run that is continued; None for a new run.

        Raises:
            UsageError: the mode cannot work with this model.
        """
        return self

    def doubts(self) -> Iterator[Doubt]:
        """Yield what is odd about the options, if the mode is asked for."""
        yield from ()

    def bind(self, setting: Setting) -> BoundMode:
        """Prepare the mode for a tokenizer.

        Raises:
            UsageError: the mode cannot work with this tokenizer.
        """
        return BoundMode()

    def accepts(self, completion: Completion) -> bool:
        """Whether an output row is what this mode was asked for."""
        return True

    def measured(self) -> "list[pa.Field]":
        """Return the columns whose values come from ``BoundMode.complete``. They go through the journal."""
        return []

    def derived(self) -> "list[pa.Field]":
        """Return the columns that are computed from a row's other columns when a part is written."""
        return []

    def derive(self, completions: Sequence[Completion], earlier: "Mapping[str, pa.Array]") -> "Mapping[str, pa.Array]":
        """Return the derived columns of completions.

        Args:
            completions: all samples of each row.
            earlier: the columns that the modes before this one derived from them.
        """
        return {}

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """Yield each possible problem, and for each row whether it is free of that problem. Null counts as wrong.

        Args:
            batch: rows of a part.
            is_error: [rows] bool, true for rows without a completion.
        """
        yield from ()

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Count what came out of this mode, by names that no other mode uses: each value to its number of rows.

        Args:
            batch: rows of a part, or of a journal, which does not have the derived columns.
        """
        return {}

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Return what came out of this mode as text: titles of at most ten characters, and lines.

        Args:
            outcome: has at least one completion.
        """
        return []

    def label_columns(self) -> Sequence[LabelColumn]:
        """Return the columns with labels that a report can be made of."""
        return ()

    def card_values(self) -> Mapping[str, Any]:
        """Return what the dataset card says, under the names of the options."""
        return self.given()

    def part_metadata(self) -> dict[bytes, bytes]:
        """Return this mode's entries in the metadata of every part."""
        return {}

    def serves(self, response_format: Mapping[str, Any]) -> bool:
        """Whether every completion follows this ``response_format`` of OpenAI's API."""
        return False
