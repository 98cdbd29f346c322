"""Embeddings: one vector of each text, as sentence-transformers makes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from job.errors import UsageError, require
from job.modes.headed import (
    SAMPLING,
    check_alone,
    cut_columns,
    cut_tally,
    cut_values,
    cuts_texts,
    describe_cut,
    prompts_of_texts,
)
from job.modes.mode import Answer, AnswerLength, BoundMode, Mode, Outcome, Section, Setting, Tokens
from job.modes.options import option
from job.records import Generation
from job.tasks import Pool, Task
from job.tasks.head import EMBED, MEANS, POOLINGS, Head
from job.wording import meant

if TYPE_CHECKING:
    import pyarrow as pa

    from job.config import PromptConfig, RunConfig

EMBEDDING_DTYPES = ("float32", "float16", "int8")
NO_PROMPT = "none"
INTERNAL = ("size", "prefix", "lowers_case", "cuts")
SHOWN = ("size", "dimensions", "pooling", "layers", "normalize", "embedding_dtype", "prefix", "lowers_case")
BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedMode(Mode):
    """A vector of each text."""

    name: ClassVar[str] = EMBED
    answers: ClassVar[bool] = True
    decides_end: ClassVar[bool] = True
    follows_reasoning: ClassVar[bool] = False
    ignores: ClassVar[frozenset[str]] = SAMPLING
    task_category: ClassVar[str | None] = "feature-extraction"
    content: ClassVar[str | None] = "Embeddings"
    empty_preview: ClassVar[Mapping[str, Any]] = {"embedding": None}

    pooling: str | None = option(
        None,
        "With --task embed: what becomes the vector of a text: the mean of its tokens' (in a weighted mean, the n-th "
        "counts n times), or that of the last or the first (cls) token [default: what the files of "
        "sentence-transformers in the model's directory say; without them, last for a decoder].",
        choices=POOLINGS,
    )
    normalize: bool | None = option(
        None, "With --task embed: scale vectors to the length 1 [default: what the same files say, or not]."
    )
    embedding_dtype: str = option(
        "float32",
        "With --task embed: the type of the numbers. int8: a row has a column embedding_scale, to multiply with.",
        choices=EMBEDDING_DTYPES,
    )
    prompt_name: str | None = option(
        None,
        "With --task embed: put a text of config_sentence_transformers.json before each text, by its name, such as "
        f"query; or {NO_PROMPT} [default: what that file says].",
        metavar="NAME",
    )
    dimensions: int | None = option(
        None,
        "With --task embed: keep the first N numbers of each vector, for models that were trained for it (Matryoshka). "
        "The rest is cut off before --normalize and --embedding-dtype.",
        metavar="N",
    )
    layers: tuple[str, ...] = ()
    """The dense layers that are applied to the pooled vector, in words. From the model."""
    lowers_case: bool = False
    """Whether texts are read in lower case. From the model."""
    cuts: bool = False
    """Whether texts that are too long are cut. From ``--on-long-prompt``."""
    size: int | None = None
    """How many numbers a vector has. From the model."""
    prefix: str = ""
    """The text that ``prompt_name`` names. From the model."""

    @property
    def flag(self) -> str:
        """See ``Mode``."""
        return f"--task {EMBED}"

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        require(self.pooling in (None, *POOLINGS), "pooling", self.pooling, f"one of {', '.join(POOLINGS)}")
        dtypes = f"one of {', '.join(EMBEDDING_DTYPES)}"
        require(self.embedding_dtype in EMBEDDING_DTYPES, "embedding-dtype", self.embedding_dtype, dtypes)
        if self.dimensions is not None:
            require(self.dimensions > 0, "dimensions", self.dimensions, "at least 1")
        check_alone(self, config)

    def prompts(self, config: "PromptConfig") -> "PromptConfig":
        """See ``Mode``."""
        return replace(prompts_of_texts(config), text_prefix=self.prefix, lowers_case=self.lowers_case)

    def headed(self, head: Head) -> Self:
        """Take from the model what its options leave to it. (A run of another task asks nothing.)"""
        if head.labels:
            return self
        pooling = self.pooling or head.pooling or (None if head.reads_ahead else "last")
        if pooling is None:
            raise UsageError(
                "--task embed: the model's directory has no modules.json of sentence-transformers, which says how "
                "vectors of tokens become one. Set --pooling as the model's authors do: mean, or cls."
            )
        if pooling == "cls" and not head.reads_ahead:
            raise UsageError("--pooling cls: the first token of a decoder sees no other. Use last or mean.")
        prefix = self._prefix(head)
        if prefix and pooling in MEANS and not head.pools_prompt:
            raise UsageError(
                "--task embed: the model leaves its prompts out of the mean (include_prompt is false), which is not "
                f"served. Set --prompt-name {NO_PROMPT}, or use sentence-transformers."
            )
        normalize = head.normalizes if self.normalize is None else self.normalize
        if self.dimensions is not None and self.dimensions > head.size:
            raise UsageError(
                f"--dimensions is {self.dimensions:,}, but the model's vectors have {head.size:,} numbers."
            )
        return replace(
            self,
            pooling=pooling,
            normalize=normalize,
            size=head.size,
            layers=tuple(map(str, head.dense)),
            lowers_case=head.lowers_case,
            prefix=prefix.lower() if head.lowers_case else prefix,
        )

    def _prefix(self, head: Head) -> str:
        name = self.prompt_name or head.usual_prompt or NO_PROMPT
        if name == NO_PROMPT and name not in head.prompts:
            return ""
        if name not in head.prompts:
            known = ", ".join(head.prompts)
            close = meant(name, list(head.prompts))
            advice = f"Did you mean {close}?" if close else f"It has {known}." if known else "It has none."
            raise UsageError(f"--prompt-name {name}: the model has no prompt of this name. {advice}")
        return head.prompts[name]

    def settled(self, config: "RunConfig", tokens: Tokens, template: str | None, found: Sequence[Mode] | None) -> Self:
        """See ``Mode``."""
        return self if self.size is None else replace(self, cuts=cuts_texts(config))

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        return BoundEmbed(self)

    def measured(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        assert self.size is not None, "headed"
        types = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
        vector = pa.field("embedding", pa.list_(types[self.embedding_dtype], self.dimensions or self.size))
        scale = [pa.field("embedding_scale", pa.float32())] if self.embedding_dtype == "int8" else []
        return [vector, *scale, *cut_columns(cuts=self.cuts)]

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        for column in self.measured():
            yield f"neither {column.name} nor error, or both", pc.equal(pc.is_null(batch[column.name]), is_error)

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Count the texts that were cut."""
        return cut_tally(batch, cuts=self.cuts)

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say what the vectors are."""
        return [("vectors", self.phrase), *describe_cut(outcome)]

    @property
    def phrase(self) -> str:
        """What a vector is, in words."""
        of = {
            "mean": "the mean of all tokens",
            "weighted-mean": "the weighted mean of all tokens",
            "last": "of the last token",
            "cls": "of the first token",
        }
        assert self.pooling is not None and self.size is not None, "headed"
        normalized = ", of length 1" if self.normalize else ""
        first = "" if self.dimensions is None else f"the first {self.dimensions:,} of "
        layers = "".join(f", {layer}" for layer in self.layers)
        return f"{first}{self.size:,} numbers in {self.embedding_dtype}, {of[self.pooling]}{layers}{normalized}"

    def card_values(self) -> Mapping[str, Any]:
        """See ``Mode``."""
        values = {name: value for name, value in self.given().items() if name not in INTERNAL}
        return {**values, "embedding_dtype": self.embedding_dtype}


class BoundEmbed(BoundMode):
    """Asks for the vector of each text, and stores it."""

    def __init__(self, mode: EmbedMode) -> None:
        """Serve a mode that knows the model."""
        assert mode.size is not None and mode.pooling is not None, "headed"
        self._mode, self._task = mode, Pool(size=mode.size, pooling=mode.pooling)

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        return self._task

    def complete(self, answer: Answer, generation: Generation) -> Answer:
        """Store the vector. The completion is an empty text."""
        import numpy as np

        assert generation.vector is not None and generation.vector.shape == (self._task.size,), "the engine pools"
        vector = generation.vector[: self._mode.dimensions]
        if self._mode.normalize:
            vector = vector / max(float(np.linalg.norm(vector.astype(np.float64))), 1e-12)  # as torch's normalize does
        values: dict[str, Any] = {"embedding": vector.astype(self._mode.embedding_dtype)}
        if self._mode.embedding_dtype == "int8":
            scale = float(np.abs(vector).max()) / 127 or 1.0
            values = {"embedding": np.rint(vector / scale).astype(np.int8), "embedding_scale": scale}
        values |= cut_values(generation.request, cuts=self._mode.cuts)
        return replace(answer, completion="", values={**answer.values, **values})

    def length(self, length: AnswerLength) -> AnswerLength:
        """See ``BoundMode``. Nothing comes after a text."""
        return AnswerLength(num_tokens=0, what="What --task embed needs, in tokens,")

    def sections(self) -> list[Section]:
        """Say what a vector is, and what it takes."""
        mode = self._mode
        num_bytes = (mode.dimensions or self._task.size) * BYTES[mode.embedding_dtype]
        lines = [f"{mode.phrase}: {num_bytes:,} bytes a row"]
        lines += [f"before each text: {mode.prefix!r}"] if mode.prefix else []
        lines += ["texts in lower case"] if mode.lowers_case else []
        values = {name: getattr(mode, name) for name in SHOWN}
        return [Section(title="embedding", lines=lines, values={"embedding": values})]
