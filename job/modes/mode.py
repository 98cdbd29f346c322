"""What a kind of answer is: one protocol, from its options to its columns.

A ``Mode`` is a frozen dataclass whose fields are its options; the values say what the user asked for. From them alone,
without a tokenizer or a model, it knows its columns, how they are checked, and what the card says: so a run can be
verified and exported from its manifest. ``bind`` gives the ``BoundMode`` that knows the tokenizer: what the engine is
asked, and what becomes of a generation.

Modes are imported to show ``--help``, so they import nothing heavy (numpy, pyarrow, ...) at load.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from job.records import Completion, Generation
from job.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import RunConfig, SamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSpec:
    """How the command line shows an option of a mode. Its name and default are those of the field."""

    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    """The values that it may have; empty: any."""
    type: type = str
    """Of one value. A field whose default is False is a switch, one whose default is () may be repeated."""
    read: Callable[[Any], Any] | None = None
    """From what the user typed to the value, such as the text of a file that was named. Raises ``UsageError``."""


def option(default: Any, help: str, **attributes: Any) -> Any:
    """Declare a field of a mode as an option; see ``OptionSpec``."""
    return field(default=default, metadata={"option": OptionSpec(help=help, **attributes)})


class Tokens(Protocol):
    """The model's tokenizer, as far as modes use it."""

    inner: Any
    """The tokenizer of transformers."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens at its ends."""

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return texts, special tokens left out."""

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as the vocabulary calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a mode is bound to."""

    tokens: Tokens
    sampling: "SamplingConfig"
    prompt_suffix: str
    """What the chat template writes after the user's message; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a generation came to, without an error. The modes of a run make it, one after the other."""

    completion: str | None
    finish_reason: str | None
    num_completion_tokens: int
    values: Mapping[str, Any] = field(default_factory=dict)
    """The values of the measured columns, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLength:
    """How many tokens an answer may take in the model's context."""

    num_tokens: int
    what: str
    """The option that decides it, as the subject of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What a preview shows of a mode."""

    title: str
    """At most ten characters."""
    lines: Sequence[str]
    values: Mapping[str, Any] = field(default_factory=dict)
    """The same as JSON values, under names that stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A text that is put in the place of a row's own, and computed before the first row."""

    text: str
    option: str
    """The option that asks for it, for messages."""


class BoundMode:
    """A mode that knows the tokenizer. What it inherits changes nothing."""

    notes: tuple[str, ...] = ()
    """What the user should know before the result is there."""
    probes: tuple[Probe, ...] = ()
    """What it wants to know before the first row; see ``calibrated``."""

    def refine(self, task: Task) -> Task:
        """Return what the engine is asked for a row, given what the modes before this one ask."""
        return task

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Return the answer to a row, given what the modes before this one made of its generation."""
        return answer

    def length(self, length: AnswerLength) -> AnswerLength:
        """Return how long an answer may be, given what the modes before this one say."""
        return length

    def calibrated(self, probes: Sequence[Generation]) -> "BoundMode":
        """Return this mode with what the ``probes`` came to taken into account."""
        return self

    def notes_on(self, first_prompt: Callable[[], str | None]) -> tuple[str, ...]:
        """Return what the user should know, given the first row's prompt: the others end like it, as a rule.

        Args:
            first_prompt: reads it from the dataset, which takes time. None: that row has none.
        """
        return self.notes

    def sections(self) -> Sequence[Section]:
        """Return what a preview shows."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One kind of answer, with the values of its options. What it inherits adds nothing."""

    name: ClassVar[str]
    answers: ClassVar[bool] = False
    """Whether it says what the engine computes. One mode of a run does; the others refine or add to it."""
    decides_end: ClassVar[bool] = False
    """Whether it says where a completion ends. At most one mode of a run does, and no stop strings are beside it."""
    task_category: ClassVar[str | None] = None
    """HuggingFace's word for it in a dataset card."""
    empty_preview: ClassVar[Mapping[str, Any]] = {}
    """The JSON values of a preview if the mode is not asked for."""

    @property
    def is_asked(self) -> bool:
        """Whether the options ask for this mode."""
        return bool(self.given())

    @property
    def flag(self) -> str:
        """The option that asks for it, for messages."""
        return "--" + next(iter(self.given()), self.name).replace("_", "-")

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Make it from a manifest's JSON values. Those that this version does not know are ignored."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})

    def check(self, config: "RunConfig") -> None:
        """Check the mode against the other options of a run, if it is asked for.

        Raises:
            UsageError: they contradict each other.
        """

    def bind(self, setting: Setting) -> BoundMode:
        """Prepare the mode for a tokenizer.

        Raises:
            UsageError: it cannot work with it.
        """
        return BoundMode()

    def measured(self) -> "list[pa.Field]":
        """Return the columns whose values come from ``BoundMode.complete``. They go through the journal."""
        return []

    def derived(self) -> "list[pa.Field]":
        """Return the columns that follow from other columns of the same row when a part is written."""
        return []

    def derive(self, completions: Sequence[Completion]) -> "Mapping[str, pa.Array]":
        """Return the derived columns of completions, all samples of a row among them."""
        return {}

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """Yield what would be wrong with a row, and for each row whether it is right. Null counts as wrong.

        Args:
            batch: rows of a part.
            is_error: [rows] bool: those without a completion.
        """
        yield from ()

    def card_values(self) -> Mapping[str, Any]:
        """Return what the dataset card says, under the names of the options."""
        return self.given()

    def part_metadata(self) -> dict[bytes, bytes]:
        """Return what every part's metadata says of this mode."""
        return {}

    def serves(self, response_format: Mapping[str, Any]) -> bool:
        """Whether every completion has this ``response_format`` of OpenAI's API."""
        return False
