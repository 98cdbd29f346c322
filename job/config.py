"""The configuration of a run: what the user asked for, checked field by field. Reads no files, imports nothing heavy.

``__post_init__`` checks what the values alone can show. Checks that need the dataset, the model or the launcher are
made by the code that opens them.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from job.engine import registry
from job.errors import UsageError, require
from job.modes.mode import Mode
from job.modes.registry import active
from job.tasks import SamplingParams

DTYPES = ("auto", "float16", "bfloat16", "float32")
COMPRESSIONS = ("zstd", "snappy", "gzip", "none")
LONG_PROMPT_POLICIES = ("error", "truncate-left", "truncate-right")
ENGINES = tuple(registry.ENGINES)
EXPORT_FORMATS = ("jsonl", "csv", "parquet", "openai-batch")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which weights to load, and in which precision."""

    model: str
    """Hub id or local directory."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model. None: its default branch."""
    dtype: str = "auto"
    """``auto``: float16 on CUDA; on a CPU, bfloat16 if the processor supports it, else float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    max_model_len: int | None = None
    """Maximum number of prompt plus completion tokens. None: the limit in the model's configuration."""

    def __post_init__(self) -> None:
        require(bool(self.model), "model", self.model, "a Hub id or a directory")
        require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        if self.max_model_len is not None:
            require(self.max_model_len > 1, "max-model-len", self.max_model_len, "at least 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which rows to read."""

    dataset: str
    """Hub id, local file, glob or directory."""
    dataset_config: str | None = None
    """Name of a Hub dataset's configuration ("subset")."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a Hub dataset. None: its default branch."""
    split: str | None = None
    """None: ``train``, or the only split."""
    data_files: tuple[str, ...] = ()
    """Paths or globs inside the dataset, or local files when ``dataset`` is a format name such as ``json``."""
    streaming: bool = False
    """Read without a local Arrow copy. Not needed for Parquet, Arrow, JSON lines and text, which are never copied."""
    limit: int | None = None
    """Process only the first N rows. None: all."""
    id_column: str | None = None
    """A column to write right after the indices."""
    keep_columns: tuple[str, ...] = ()
    """Columns to copy to the output with their types; ``*`` means all."""

    def __post_init__(self) -> None:
        require(bool(self.dataset), "dataset", self.dataset, "a Hub id or a path")
        if self.limit is not None:
            require(self.limit > 0, "limit", self.limit, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """How a row becomes a prompt."""

    prompt_column: str | None = None
    """Text column. None, and no messages or template either: ``prompt``."""
    messages_column: str | None = None
    """Column with a list of {role, content}, as in OpenAI's API, or the same as JSON text."""
    prompt_template: str | None = None
    """Jinja2 template; the row's columns are its variables."""
    system_prompt: str | None = None
    """System message to put before every prompt."""
    examples: str | None = None
    """Few-shot examples as JSON lines, to put before every row's own prompt."""
    chat: bool | None = None
    """Whether to apply the tokenizer's chat template. None: if it has one."""
    max_prompt_tokens: int | None = None
    """Maximum number of prompt tokens. None: what the answer leaves of the model's context."""
    on_long_prompt: str = "error"
    """What to do with a longer prompt: make an error row, or cut its left or right end."""

    @property
    def text_column(self) -> str | None:
        """The column whose text is the prompt; None if the prompt comes from messages or a template."""
        if self.messages_column is not None or self.prompt_template is not None:
            return None
        return self.prompt_column or "prompt"

    def __post_init__(self) -> None:
        ways = [n for n in ("prompt_column", "messages_column", "prompt_template") if getattr(self, n) is not None]
        if len(ways) > 1:
            names = " and ".join("--" + n.replace("_", "-") for n in ways)
            raise UsageError(f"{names} were given together. Give only one: it defines the prompt.")
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
    """How completions are generated: the parameters of each request, and the settings that concern text and rows."""

    stop: tuple[str, ...] = ()
    """Texts that end a completion, which is cut just before them."""
    num_samples: int = 1
    """Completions per row."""

    def __post_init__(self) -> None:
        SamplingParams.__post_init__(self)
        require("" not in self.stop, "stop", "", "a non-empty text")
        require(0 < self.num_samples < 2**31, "num-samples", self.num_samples, "at least 1")

    def options(self) -> dict[str, Any]:
        """Return the values of the sampling options. (``logprobs`` is an option of a mode.)"""
        values = asdict(self)
        del values["logprobs"]
        return values

    @property
    def params(self) -> SamplingParams:
        """The parameters of each request."""
        return SamplingParams(**{field.name: getattr(self, field.name) for field in fields(SamplingParams)})


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where and how rows are written."""

    output: Path
    """The run directory."""
    rows_per_shard: int = 10_000
    """Number of dataset rows per part file."""
    compression: str = "zstd"
    """Parquet compression codec."""
    include_prompt: bool = True
    """Write the rendered prompt next to its completion."""
    max_error_rate: float = 0.05
    """A run with a larger share of error rows ends with exit code 3. 1: never."""

    def __post_init__(self) -> None:
        require(self.rows_per_shard > 0, "rows-per-shard", self.rows_per_shard, "at least 1")
        require(self.compression in COMPRESSIONS, "compression", self.compression, f"one of {COMPRESSIONS}")
        require(0 <= self.max_error_rate <= 1, "max-error-rate", self.max_error_rate, "between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How this launch computes. No field here may affect what is in a row, so a restart may change any of them."""

    tensor_parallel_size: int = 1
    """Processes (GPUs) that share one copy of the model."""
    engine: str = "paged"
    """``paged``: continuous batching, or ``static`` if the model does not support that. ``static``: transformers'
    generate. ``fake``: no model, for testing everything else."""
    max_batch_rows: int | None = None
    """Maximum number of rows computed at once. None: 256 on a CPU, 512 on a GPU (static: 64 and 512)."""
    max_batch_tokens: int | None = None
    """Maximum number of tokens computed in one step, including chunks of prompts. None: 2048 on a CPU, 4096 on a GPU.
    Static: rows of a batch times (longest prompt + max_new_tokens). None: as many as free memory allows."""
    kv_cache_memory: int | None = None
    """Bytes per process for the paged engine's KV cache. None: a share of the memory that is free after loading."""
    cuda_graphs: bool = True
    """On a GPU, record decode steps as CUDA graphs and replay them, so the host need not launch each kernel."""
    stall_timeout: float = 1800.0
    """Seconds without a token after which the process reports the rows in flight and exits. 0: never."""
    lease_timeout: float | None = None
    """Seconds of silence after which other workers take over a worker's shards. None: the run's own value, or 60."""
    share_prefixes: bool = True
    """Compute shared prompt prefixes once. Turn off only for benchmarking or debugging."""

    @property
    def needs_model(self) -> bool:
        """Whether the engine uses the model's weights."""
        return registry.ENGINES[self.engine].needs_model

    def __post_init__(self) -> None:
        require(self.tensor_parallel_size > 0, "tensor-parallel-size", self.tensor_parallel_size, "at least 1")
        if self.lease_timeout is not None:
            require(1 <= self.lease_timeout <= 86_400, "lease-timeout", self.lease_timeout, "1 to 86400 seconds")
        require(self.engine in ENGINES, "engine", self.engine, f"one of {', '.join(ENGINES)}")
        if self.tensor_parallel_size > 1 and not self.needs_model:
            raise UsageError(f"--engine {self.engine} has no model to share. Use --tensor-parallel-size 1.")
        require(self.stall_timeout >= 0, "stall-timeout", self.stall_timeout, "0 (never) or more")
        for name in ("max_batch_rows", "max_batch_tokens", "kv_cache_memory"):
            value = getattr(self, name)
            require(value is None or value > 0, name.replace("_", "-"), value, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that ``job run`` was asked to do, as typed; where a file was given for a text, the file's text."""

    model: ModelConfig
    data: DataConfig
    prompt: PromptConfig
    sampling: SamplingConfig
    output: OutputConfig
    modes: tuple[Mode, ...] = ()
    """All kinds of answers with their options, whether or not they are asked for."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    verbose: bool = False
    """Let DeepSpeed, transformers and datasets write to stderr."""

    @property
    def active_modes(self) -> tuple[Mode, ...]:
        """The modes that are asked for, in the order of the table."""
        return active(self.modes)

    def __post_init__(self) -> None:
        for mode in self.active_modes:
            mode.check(self)
        ending = [mode.flag for mode in self.active_modes if mode.decides_end]
        if len(ending) > 1:
            names = " and ".join(ending)
            raise UsageError(f"{names} were given together. Give only one: it defines what a completion may be.")
        if ending and (self.sampling.stop or self.sampling.ignore_eos):
            wrong = "--stop" if self.sampling.stop else "--ignore-eos"
            raise UsageError(
                f"{wrong} and {ending[0]} were given together. Leave out {wrong}: "
                f"{ending[0]} decides where completions end."
            )
        answering = [mode.flag for mode in self.active_modes if mode.answers]
        if len(answering) > 1:
            names = " and ".join(answering)
            raise UsageError(f"{names} were given together. Give only one: each defines the whole answer.")
