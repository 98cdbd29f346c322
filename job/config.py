"""The configuration of a run: what the user asked for, checked field by field. Reads nothing, imports nothing heavy.

``__post_init__`` checks what can be known from the values alone. What needs the dataset, the model or the launcher is
checked by the part that owns it.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from job.engine import kinds
from job.errors import UsageError, require
from job.tasks import SamplingParams

DTYPES = ("auto", "float16", "bfloat16", "float32")
COMPRESSIONS = ("zstd", "snappy", "gzip", "none")
LONG_PROMPT_POLICIES = ("error", "truncate-left", "truncate-right")
ENGINES = tuple(kinds.ENGINES)
EXPORT_FORMATS = ("jsonl", "csv", "parquet", "openai-batch")
NORMALIZATIONS = ("none", "tokens", "bytes")
AGGREGATES = ("majority",)
CONSTRAINTS = ("json_schema", "regex", "grammar")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which weights, in which precision."""

    model: str
    """Hub id or local directory."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model. None: its default branch."""
    dtype: str = "auto"
    """``auto``: float16 on CUDA; on a CPU bfloat16 if the processor has it, else float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    max_model_len: int | None = None
    """Prompt plus completion tokens at most. None: what the model's configuration says."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "a Hub id or a directory")
        require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        if self.max_model_len is not None:
            require(self.max_model_len > 1, "max-model-len", self.max_model_len, "at least 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which rows."""

    dataset: str
    """Hub id, local file, glob or directory."""
    dataset_config: str | None = None
    """Name of a Hub dataset's configuration ("subset")."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a Hub dataset. None: its default branch."""
    split: str | None = None
    """None: ``train``, or the only split there is."""
    data_files: tuple[str, ...] = ()
    """Paths or globs inside the dataset, or local files when ``dataset`` is a format name such as ``json``."""
    streaming: bool = False
    """Read without a local Arrow copy. Parquet, Arrow, JSON lines and text are never copied, so need it not."""
    limit: int | None = None
    """Only the first so many rows. None: all."""
    id_column: str | None = None
    """A column to carry along right after the indices."""
    keep_columns: tuple[str, ...] = ()
    """Columns to carry along with their types; ``*`` means all."""

    def __post_init__(self) -> None:
        require(bool(self.dataset), "dataset", self.dataset, "a Hub id or a path")
        if self.limit is not None:
            require(self.limit > 0, "limit", self.limit, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """How a row becomes a prompt."""

    prompt_column: str | None = None
    """Text column. None, with no other way named: ``prompt``."""
    messages_column: str | None = None
    """Column with a list of {role, content}, as in OpenAI's API, or the same as JSON text."""
    request_column: str | None = None
    """Column with the bodies of requests to OpenAI's API. No option: a dataset of them is recognised."""
    prompt_template: str | None = None
    """Jinja2 text, or the path of a file with it; the row's columns are its variables."""
    system_prompt: str | None = None
    """Put before every prompt as a system message."""
    examples: str | None = None
    """Few-shot examples, before every row's own prompt: the path of a file of JSON lines, later the text in it."""
    chat: bool | None = None
    """Apply the tokenizer's chat template. None: if it has one."""
    max_prompt_tokens: int | None = None
    """None: the room of the model less ``max_new_tokens``."""
    on_long_prompt: str = "error"
    """What to do with a longer one: an error row, or cut its left or right end."""

    @property
    def text_column(self) -> str | None:
        """The column whose text is the prompt; None if messages, requests or a template make it."""
        if any(way is not None for way in (self.messages_column, self.request_column, self.prompt_template)):
            return None
        return self.prompt_column or "prompt"

    def __post_init__(self) -> None:
        ways = [n for n in ("prompt_column", "messages_column", "prompt_template") if getattr(self, n) is not None]
        if len(ways) > 1:
            names = " and ".join("--" + n.replace("_", "-") for n in ways)
            raise UsageError(f"{names} were given together. Give one: it says where the prompt comes from.")
        if self.chat is False and (self.messages_column or self.system_prompt):
            option = "--messages-column" if self.messages_column else "--system-prompt"
            raise UsageError(f"{option} needs the chat template, but --no-chat was given. Leave one of them out.")
        if self.max_prompt_tokens is not None:
            require(self.max_prompt_tokens > 0, "max-prompt-tokens", self.max_prompt_tokens, "at least 1")
        require(
            self.on_long_prompt in LONG_PROMPT_POLICIES,
            "on-long-prompt",
            self.on_long_prompt,
            f"one of {', '.join(LONG_PROMPT_POLICIES)}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig(SamplingParams):
    """How the completions of every row are chosen: the parameters of each request, and what concerns text and rows."""

    stop: tuple[str, ...] = ()
    """Texts that end a completion; the completion is cut before them."""
    num_samples: int = 1
    """Completions per row."""

    def __post_init__(self) -> None:
        SamplingParams.__post_init__(self)
        require("" not in self.stop, "stop", "", "a text that is not empty")
        require(0 < self.num_samples < 2**31, "num-samples", self.num_samples, "at least 1")

    @property
    def params(self) -> SamplingParams:
        """The parameters of each request."""
        return SamplingParams(**{field.name: getattr(self, field.name) for field in fields(SamplingParams)})


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerConfig:
    """What a completion may be. Nothing given: any text."""

    choices: tuple[str, ...] = ()
    """The completion is one of these, the likeliest; or one value, the path of a file with one per line."""
    choice_normalization: str = "none"
    """Compare log-likelihoods as they are, or divided by each choice's tokens or UTF-8 bytes."""
    choice_calibration: tuple[str, ...] = ()
    """Content-free texts in the row's place (Zhao et al. 2021): choices likely after them, too, count less."""
    json_schema: str | None = None
    """JSON text of a schema, or the path of a file with it."""
    regex: str | None = None
    """The whole completion matches it. Rust's syntax: no look-around, no back references."""
    grammar: str | None = None
    """Lark text, as llguidance reads it, or the path of a file with it."""
    aggregate: str | None = None
    """``majority``: beside each sample, what most samples of its row say."""

    @property
    def constraint(self) -> str | None:
        """The one of json_schema, regex and grammar that was given."""
        return next((name for name in CONSTRAINTS if getattr(self, name) is not None), None)

    def __post_init__(self) -> None:
        given = [name for name in ("choices", *CONSTRAINTS) if getattr(self, name)]
        if len(given) > 1:
            names = " and ".join("--" + name.replace("_", "-") for name in given)
            raise UsageError(f"{names} were given together. Give one: it says what a completion may be.")
        for name in CONSTRAINTS:
            require(getattr(self, name) != "", name.replace("_", "-"), "", "a text that is not empty")
        require(
            self.choice_normalization in NORMALIZATIONS,
            "choice-normalization",
            self.choice_normalization,
            f"one of {', '.join(NORMALIZATIONS)}",
        )
        if not self.choices and (self.choice_normalization != "none" or self.choice_calibration):
            option = "--choice-calibration" if self.choice_calibration else "--choice-normalization"
            raise UsageError(f"{option} was given without --choices.")
        if self.aggregate is not None:
            require(self.aggregate in AGGREGATES, "aggregate", self.aggregate, f"one of {', '.join(AGGREGATES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where the rows go."""

    output: Path
    """The run directory."""
    rows_per_shard: int = 10_000
    """Rows of the dataset per part file."""
    compression: str = "zstd"
    """Of the Parquet parts."""
    include_prompt: bool = True
    """Write the rendered prompt beside its completion."""
    max_error_rate: float = 0.05
    """More error rows than this share end the run with exit code 3. 1: never."""

    def __post_init__(self) -> None:
        require(self.rows_per_shard > 0, "rows-per-shard", self.rows_per_shard, "at least 1")
        require(self.compression in COMPRESSIONS, "compression", self.compression, f"one of {COMPRESSIONS}")
        require(0 <= self.max_error_rate <= 1, "max-error-rate", self.max_error_rate, "between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How this launch computes. None of it may change what a row says, so a restart may change all of it."""

    tensor_parallel_size: int = 1
    """Processes (GPUs) that share one copy of the model."""
    engine: str = "paged"
    """``paged``: continuous batching; ``static`` if the model cannot be served so. ``static``: transformers' generate.
    ``fake``: no model, for tests of everything else."""
    max_batch_rows: int | None = None
    """Rows computed at once at most. None: 256 on a CPU, 512 on a GPU (static: 64 and 512)."""
    max_batch_tokens: int | None = None
    """Tokens computed in one step at most, prompts in chunks included. None: 2048 on a CPU, 4096 on a GPU.
    Static: rows of a batch times (longest prompt + max_new_tokens). None: from the memory that is free."""
    kv_cache_memory: int | None = None
    """Bytes per process for the paged engine's KV cache. None: a share of what is free after loading."""
    cuda_graphs: bool = True
    """On a GPU, record decode steps and replay them: the host need not launch each kernel."""
    stall_timeout: float = 1800.0
    """Seconds without a token after which the process ends, and says which rows it was at. 0: never."""
    share_prefixes: bool = True
    """Compute the common beginnings of prompts once. Off only to measure or to find a mistake."""

    @property
    def needs_model(self) -> bool:
        """Whether the engine computes with the model's weights."""
        return kinds.ENGINES[self.engine].needs_model

    def __post_init__(self) -> None:
        require(self.tensor_parallel_size > 0, "tensor-parallel-size", self.tensor_parallel_size, "at least 1")
        require(self.engine in ENGINES, "engine", self.engine, f"one of {', '.join(ENGINES)}")
        if self.tensor_parallel_size > 1 and not self.needs_model:
            raise UsageError(f"--engine {self.engine} has no model to share. Use --tensor-parallel-size 1.")
        require(self.stall_timeout >= 0, "stall-timeout", self.stall_timeout, "0 (never) or more")
        for name in ("max_batch_rows", "max_batch_tokens", "kv_cache_memory"):
            value = getattr(self, name)
            require(value is None or value > 0, name.replace("_", "-"), value, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that ``job run`` was asked."""

    model: ModelConfig
    data: DataConfig
    prompt: PromptConfig
    sampling: SamplingConfig
    output: OutputConfig
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    verbose: bool = False
    """Let DeepSpeed, transformers and datasets talk (on stderr)."""

    def __post_init__(self) -> None:
        sampling, answer = self.sampling, self.answer
        if answer.choices or answer.constraint:
            option = "choices" if answer.choices else str(answer.constraint).replace("_", "-")
            if sampling.stop or sampling.ignore_eos:
                wrong = "--stop" if sampling.stop else "--ignore-eos"
                raise UsageError(f"{wrong} and --{option} were given together. The latter says where completions end.")
        names = ("top_p", "top_k", "min_p", "repetition_penalty")
        for name in names if answer.choices else ():
            if getattr(sampling, name) != getattr(SamplingConfig(), name):
                raise UsageError(f"--{name.replace('_', '-')} changes nothing with --choices. Leave it out.")
        if answer.choices and sampling.logprobs:
            raise UsageError("--logprobs is of no use with --choices: choice_logprobs has those of the choices.")
        if sampling.num_samples == 1 and answer.aggregate is not None:
            raise UsageError(f"--aggregate {answer.aggregate} needs several samples. Set --num-samples.")
