"""The configuration of a run: what the user asked for, checked field by field. Reads no files, imports nothing heavy.

``__post_init__`` checks what the values alone can show. Checks that need the dataset, the model or the launcher are
made by the code that opens them.
"""

from dataclasses import dataclass, field

from job.config.data import DataConfig as DataConfig
from job.config.launch import LaunchConfig as LaunchConfig
from job.config.prompt import PromptConfig as PromptConfig
from job.config.sampling import SamplingConfig as SamplingConfig
from job.engine import registry
from job.errors import UsageError, require
from job.modes.mode import Mode
from job.modes.options import option
from job.modes.registry import active
from job.tasks.head import GENERATE, MODEL_TASKS

KV_CACHE_DTYPES = ("auto", "fp8")
QUANTIZATIONS = ("fp8", "int8")
DTYPES = ("auto", "float16", "bfloat16", "float32")
COMPRESSIONS = ("zstd", "snappy", "gzip", "none")
DEVICES = ("auto", "cuda", "cpu")
ATTENTION_BACKENDS = ("auto", "triton", "cpp", "plain")
ENGINES = tuple(registry.ENGINES)
EXPORT_FORMATS = ("jsonl", "csv", "parquet", "openai-batch")


FOUR_BITS = frozenset({"int4", "uint4", "nf4", "fp4", "4bit", "w4a16", "mxfp4", "nvfp4", "awq", "gptq", "q4"})
"""What others call 4 bits, as values of --quantize."""

EIGHT_BITS = {"fp8": ("fp8", "float8", "e4m3"), "int8": ("int8", "8bit", "w8a16", "bitsandbytes")}
"""What is in their names for ours."""


def _check_quantization(value: str) -> None:
    name = value.lower().replace("-", "").replace("_", "")
    if name in FOUR_BITS or "4bit" in name or name.startswith("int4"):
        raise UsageError(
            f"--quantize {value} is not offered: what 4 bits cost in quality could not be shown yet, since the model "
            "that figures are measured with was made from a 4-bit file. Use int8 or fp8, or a model that was published "
            "in GPTQ, AWQ or MXFP4, which is computed in 16 bits."
        )
    if value not in QUANTIZATIONS:
        close = next((ours for ours, parts in EIGHT_BITS.items() if any(part in name for part in parts)), None)
        advice = f" Write {close}." if close else ""
        raise UsageError(f"--quantize is {value!r}; it must be one of {', '.join(QUANTIZATIONS)}.{advice}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which weights to load, and in which precision."""

    model: str
    """Hub id or local directory. Empty: the one that the adapters were trained on."""
    revision: str | None = option(None, "Branch, tag or commit of a Hub model.")
    dtype: str = option(
        "auto",
        "Precision. auto is float16 on CUDA, or bfloat16 if a bfloat16 checkpoint overflows in it; on a CPU, bfloat16 "
        "if the processor supports it, else float32.",
        choices=DTYPES,
    )
    kv_cache_dtype: str = option(
        "auto",
        "Precision of the KV cache. auto: the model's own. fp8 (e4m3): more tokens fit into the same memory, but some "
        "completions change. It cannot change on a restart.",
        choices=KV_CACHE_DTYPES,
    )
    task: str = option(
        GENERATE,
        "generate: write text. classify: write the labels of a classifier, or the score of a reward model. embed: "
        "write a vector of each text.",
        choices=MODEL_TASKS,
    )
    adapter: tuple[str, ...] = option(
        (),
        "Adapter (LoRA, DoRA, rsLoRA and others of peft) that is merged into the model at load: a directory, or a Hub "
        "id as for --model; repeat for several, which are merged in this order.",
        metavar="ID_OR_DIR",
        is_path=True,
    )
    quantize: str | None = option(
        None,
        "Quantize linear layers and experts in 8 bits after loading. fp8: weights and activations, for GPUs that "
        "multiply in it (Ada, Hopper and later). int8: weights alone, which saves memory and is slower. Completions "
        "change. It cannot change on a restart.",
        metavar="fp8|int8",
    )
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.")
    max_model_len: int | None = option(None, "Maximum number of prompt plus completion tokens [default: the model's].")

    def __post_init__(self) -> None:
        require(bool(self.model or self.adapter), "model", self.model, "a Hub id or a directory")
        require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        require(self.task in MODEL_TASKS, "task", self.task, f"one of {', '.join(MODEL_TASKS)}")
        choices = ", ".join(KV_CACHE_DTYPES)
        require(self.kv_cache_dtype in KV_CACHE_DTYPES, "kv-cache-dtype", self.kv_cache_dtype, f"one of {choices}")
        if self.quantize is not None:
            _check_quantization(self.quantize)
        if self.max_model_len is not None:
            require(self.max_model_len > 1, "max-model-len", self.max_model_len, "at least 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """Where and how rows are written."""

    output: str
    """The run directory: a path, or an address such as ``s3://bucket/run``."""
    rows_per_shard: int = option(10_000, "Number of dataset rows per Parquet part.")
    compression: str = option("zstd", "Parquet compression codec.", choices=COMPRESSIONS)
    include_prompt: bool = option(True, "Write the rendered prompt next to its completion.")
    max_error_rate: float = option(0.05, "Exit with code 3 if a larger share of rows are errors.")
    journal_in_flight: bool = option(
        True,
        "Keep, every few seconds, what unfinished rows have so far, so that after a kill they go on where they were.",
    )
    reuse: tuple[str, ...] = option(
        (),
        "Copy the rows of another run that ask the same, and compute only the others. The dataset may differ in any "
        "way, but the model, the prompt and the sampling may not. Repeat for several runs.",
        metavar="RUN",
        is_path=True,
    )
    extend: bool = option(
        False,
        "Go on with the run in --output after rows were appended to its dataset. The rows that it has must be the "
        "same, and are kept.",
    )
    show_rows: bool | None = option(
        None, "Show a finished row, prompt and completion, every minute [default: on a terminal, but not in a log]."
    )

    def __post_init__(self) -> None:
        require(self.rows_per_shard > 0, "rows-per-shard", self.rows_per_shard, "at least 1")
        require(self.compression in COMPRESSIONS, "compression", self.compression, f"one of {COMPRESSIONS}")
        require(0 <= self.max_error_rate <= 1, "max-error-rate", self.max_error_rate, "between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How this launch computes. No field here may affect what is in a row, so a restart may change any of them."""

    tensor_parallel_size: int = option(1, "Processes (GPUs) that share one copy of the model.")
    device: str = option(
        "auto",
        "auto is the GPU if there is one, else the CPU; if GPUs were promised (by Slurm, a launcher or "
        "CUDA_VISIBLE_DEVICES) but torch finds none, the run is refused.",
        choices=DEVICES,
    )
    engine: str = option(
        "paged",
        "paged: continuous batching, for models that support it. static: transformers' generate. fake: no model.",
        choices=ENGINES,
    )
    """``paged``: continuous batching, or ``static`` if the model does not support that. ``static``: transformers'
    generate. ``fake``: no model, for testing everything else."""
    max_batch_rows: int | None = option(None, "Maximum number of rows computed at once [default: 512; 256 on a CPU].")
    max_batch_tokens: int | None = option(
        None,
        "Maximum number of tokens computed in one step, including chunks of prompts [default: 8192; 2048 on a CPU].",
    )
    """Maximum number of tokens computed in one step, including chunks of prompts. None: 2048 on a CPU, 8192 on a GPU.
    Static: rows of a batch times (longest prompt + max_new_tokens). None: as many as free memory allows."""
    kv_cache_memory: int | None = option(
        None,
        "Memory for the KV cache of each process, e.g. 20GiB [default: on a GPU, all that the weights and the largest "
        "step leave; on a CPU, 40 % of what is free].",
        metavar="SIZE",
        is_size=True,
    )
    fused: bool = option(
        True,
        "On a GPU, run norms, rotations, gates and the choice of the largest logit as one kernel each, and merge "
        "products of the same input. Only what passes a trial is replaced.",
    )
    attention_backend: str = option(
        "auto",
        "What computes attention. triton: our kernels for GPUs. cpp: our kernel for CPUs. plain: torch operations, "
        "which are slower. auto: the kernel for the device, or plain, with a note, if that cannot be used.",
        choices=ATTENTION_BACKENDS,
    )
    cuda_graphs: bool | None = option(
        None, "On a GPU, record steps as CUDA graphs and replay them [default: on, unless the model is sharded]."
    )
    overlap: bool | None = option(
        None, "Prepare the next step while the device computes one; the rows stay the same [default: on for a GPU]."
    )
    stall_timeout: float = option(1800.0, "Give up after this many seconds without a token (0: never).")
    hub_timeout: float = option(
        600.0,
        "Keep trying for this many seconds while the Hub or a store does not answer, then exit with code 1 (0: do "
        "not retry).",
        metavar="SECONDS",
    )
    lease_timeout: float | None = option(
        None,
        "Seconds of silence after which a worker counts as dead and others take over its shards. The value is "
        "stored with the run; a restart may change it [default: 60].",
        metavar="SECONDS",
    )
    share_prefixes: bool = True
    """Compute shared prompt prefixes once. Turn off only for benchmarking or debugging."""

    @property
    def needs_model(self) -> bool:
        """Whether the engine uses the model's weights."""
        return registry.ENGINES[self.engine].needs_model

    def __post_init__(self) -> None:
        require(self.tensor_parallel_size > 0, "tensor-parallel-size", self.tensor_parallel_size, "at least 1")
        if self.lease_timeout is not None:
            require(15 <= self.lease_timeout <= 86_400, "lease-timeout", self.lease_timeout, "15 to 86400 seconds")
        require(self.device in DEVICES, "device", self.device, f"one of {', '.join(DEVICES)}")
        backends = f"one of {', '.join(ATTENTION_BACKENDS)}"
        require(self.attention_backend in ATTENTION_BACKENDS, "attention-backend", self.attention_backend, backends)
        require(self.engine in ENGINES, "engine", self.engine, f"one of {', '.join(ENGINES)}")
        if self.tensor_parallel_size > 1 and not self.needs_model:
            raise UsageError(f"--engine {self.engine} has no model to share. Use --tensor-parallel-size 1.")
        require(self.stall_timeout >= 0, "stall-timeout", self.stall_timeout, "0 (never) or more")
        require(self.hub_timeout >= 0, "hub-timeout", self.hub_timeout, "0 (do not retry) or more")
        for name in ("max_batch_rows", "max_batch_tokens", "kv_cache_memory"):
            value = getattr(self, name)
            require(value is None or value > 0, name.replace("_", "-"), value, "at least 1")

    def records_steps(self, *, is_sharded: bool) -> bool:
        """Whether to record steps on a GPU. Sharded steps contain collectives; that must be asked for."""
        return not is_sharded if self.cuda_graphs is None else self.cuda_graphs


SECTIONS = (ModelConfig, DataConfig, PromptConfig, SamplingConfig, OutputConfig, EngineConfig, LaunchConfig)
"""The classes whose fields are options of a run, beside those of the modes."""


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
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    verbose: bool = False
    """Let DeepSpeed, transformers and datasets write to stderr."""

    @property
    def active_modes(self) -> tuple[Mode, ...]:
        """The modes that are asked for, in the order of the table."""
        return active(self.modes, self.model.task)

    @property
    def mode_columns(self) -> tuple[str, ...]:
        """The columns of the dataset that the active modes read."""
        return tuple(dict.fromkeys(name for mode in self.active_modes for name in mode.columns()))

    def __post_init__(self) -> None:
        for mode in self.active_modes:
            mode.check(self)
        ending = [mode.flag for mode in self.active_modes if mode.decides_end]
        if len(ending) > 1:
            names = " and ".join(ending)
            raise UsageError(f"{names} were given together. Give only one: it defines what a completion may be.")
        wrong = self.sampling.ends_early
        if ending and wrong is not None:
            raise UsageError(
                f"{wrong} and {ending[0]} were given together. Leave out {wrong}: "
                f"{ending[0]} decides where completions end."
            )
        if ending and self.prompt.include_prefill:
            raise UsageError(
                f"--include-prefill and {ending[0]} were given together. Leave out --include-prefill: a completion is "
                f"then what {ending[0]} allows, and nothing else."
            )
        answering = [mode.flag for mode in self.active_modes if mode.answers]
        if len(answering) > 1:
            names = " and ".join(answering)
            raise UsageError(f"{names} were given together. Give only one: each defines the whole answer.")
