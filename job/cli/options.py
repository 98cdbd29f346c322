"""The options that say what a run is, and the way from them to a configuration."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from job.cli.config_file import read_config_file
from job.config import (
    AGGREGATES,
    COMPRESSIONS,
    DTYPES,
    ENGINES,
    LONG_PROMPT_POLICIES,
    NORMALIZATIONS,
    AnswerConfig,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OutputConfig,
    PromptConfig,
    RunConfig,
    SamplingParams,
)
from job.errors import UsageError

Command = TypeVar("Command", bound=Callable[..., Any])
Section = type[ModelConfig | DataConfig | PromptConfig | SamplingParams | AnswerConfig | OutputConfig | EngineConfig]


def split_commas(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Accept ``--x a,b`` for ``--x a --x b``. A value that names nothing is refused: it would stand for everything."""
    parts = tuple(part.strip() for value in values for part in value.split(",") if part.strip())
    if values and not parts:
        raise click.BadParameter(f"{values[0]!r} names nothing. Name one, or leave the option out.", ctx, param)
    return parts


class Size(click.ParamType[int]):
    """A number of bytes, with a unit or without."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes. GB and GiB are both 1024 ** 3, as for memory in Slurm.

        >>> Size().convert("1.5GiB", None, None), Size().convert("512m", None, None)
        (1610612736, 536870912)
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not a size such as 20GiB or 512MiB.", param, ctx)
        return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def _default(section: Section, name: str) -> Any:
    value = section.__dataclass_fields__[name].default
    return None if value == () else value


def option(section: Section, name: str, **attributes: Any) -> Callable[[Command], Command]:
    """Make an option of a configuration's field; its default is written there and nowhere else."""
    flag = "--" + name.replace("_", "-")
    default = _default(section, name)
    if attributes.pop("switch", False):
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    if attributes.get("multiple"):
        attributes.setdefault("callback", split_commas)
    else:
        attributes["default"] = default
    attributes.setdefault("show_default", default is not None and "hidden" not in attributes)
    return click.option(flag, name, **attributes)


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Apply options so that ``--help`` shows them in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


MODEL_OPTIONS = options(
    click.option("--model", required=True, metavar="ID_OR_DIR", help="Model: Hub id or local directory."),
    option(ModelConfig, "revision", help="Branch, tag or commit of a Hub model."),
    option(
        ModelConfig,
        "dtype",
        type=click.Choice(DTYPES),
        help="Precision. auto is float16 on CUDA; on a CPU, bfloat16 where the processor has it, else float32.",
    ),
    option(EngineConfig, "tensor_parallel_size", type=int, help="Processes (GPUs) that share one copy of the model."),
    option(ModelConfig, "trust_remote_code", is_flag=True, help="Run Python code that comes with the model."),
    option(
        ModelConfig, "max_model_len", type=int, help="Prompt plus completion tokens at most [default: the model's]."
    ),
)

DATA_OPTIONS = options(
    click.option(
        "--dataset",
        required=True,
        metavar="ID_OR_PATH",
        help="Dataset: local .jsonl, .json, .csv, .txt, .parquet, a glob, a directory of such files or of "
        "save_to_disk; anything else is a Hub id.",
    ),
    option(DataConfig, "dataset_config", help="Configuration (subset) of a Hub dataset."),
    option(DataConfig, "dataset_revision", help="Branch, tag or commit of a Hub dataset."),
    option(DataConfig, "split", help="Split [default: train, or the only one]."),
    option(DataConfig, "data_files", multiple=True, help="Files or globs inside the dataset. Repeat or use commas."),
    option(
        DataConfig,
        "streaming",
        switch=True,
        help="Read without a local Arrow copy. Parquet, Arrow, JSON lines and text files are never copied anyway.",
    ),
    option(DataConfig, "limit", type=int, help="Only the first so many rows."),
    option(DataConfig, "id_column", help="Column to write right after the indices."),
    option(
        DataConfig, "keep_columns", multiple=True, help="Columns to carry along; '*' for all. Repeat or use commas."
    ),
)

PROMPT_OPTIONS = options(
    option(PromptConfig, "prompt_column", help="Column with the prompt [default: prompt]."),
    option(PromptConfig, "messages_column", help="Column with a list of {role, content}, or that as JSON text."),
    option(
        PromptConfig,
        "prompt_template",
        metavar="TEXT_OR_FILE",
        help="Jinja2 template over the columns, e.g. 'Summarise: {{ text }}', or a file with one.",
    ),
    option(PromptConfig, "system_prompt", help="System message before every prompt."),
    option(
        PromptConfig,
        "examples",
        metavar="FILE",
        help="Few-shot examples before every prompt: JSON lines with the prompt's columns and 'completion'.",
    ),
    option(PromptConfig, "chat", switch=True, help="Apply the tokenizer's chat template [default: if it has one]."),
    option(PromptConfig, "max_prompt_tokens", type=int, help="[default: what the model leaves for the prompt]"),
    option(
        PromptConfig,
        "on_long_prompt",
        type=click.Choice(LONG_PROMPT_POLICIES),
        help="Longer prompts: an error row, or cut the row's text (never the chat template) at its left or right.",
    ),
)

SAMPLING_OPTIONS = options(
    option(SamplingParams, "max_new_tokens", type=int, help="Generated tokens per row at most."),
    option(SamplingParams, "temperature", type=float, help="0 is greedy."),
    option(SamplingParams, "top_p", type=float, help="Sample among the most likely tokens that sum to this."),
    option(SamplingParams, "top_k", type=int, help="Sample among so many most likely tokens; 0 is off."),
    option(SamplingParams, "min_p", type=float, help="Drop tokens less likely than this times the most likely one."),
    option(SamplingParams, "repetition_penalty", type=float, help="Above 1: tokens already seen become less likely."),
    option(
        SamplingParams,
        "stop",
        multiple=True,
        callback=None,
        help="Text that ends a completion and is cut off; repeat for several. A line's end in bash: $'\\n'.",
    ),
    option(SamplingParams, "num_samples", type=int, help="Completions per row; they differ if temperature is above 0."),
    option(
        SamplingParams,
        "logprobs",
        is_flag=True,
        help="Write the generated tokens and their log probabilities (the model's own, before temperature).",
    ),
    option(SamplingParams, "seed", type=int, help="With row_idx, sample_idx and position it fixes every draw."),
    option(SamplingParams, "ignore_eos", is_flag=True, help="Always generate max-new-tokens; for benchmarks."),
)

ANSWER_OPTIONS = options(
    option(
        AnswerConfig,
        "choices",
        multiple=True,
        callback=None,
        metavar="TEXT_OR_FILE",
        help="Answer with the likeliest of these texts, scored, not generated. Repeat, or name a file of them.",
    ),
    option(
        AnswerConfig,
        "choice_normalization",
        type=click.Choice(NORMALIZATIONS),
        help="Divide a choice's log-likelihood by its tokens or bytes before choices are compared.",
    ),
    option(
        AnswerConfig,
        "choice_calibration",
        multiple=True,
        callback=None,
        metavar="TEXT",
        help="Divide probabilities by those after this content-free text, such as 'N/A', in the row's place. Repeat "
        "to average over several.",
    ),
    option(
        AnswerConfig, "json_schema", metavar="TEXT_OR_FILE", help="Completions are JSON that this schema describes."
    ),
    option(AnswerConfig, "regex", help="Completions match this regular expression, from their start to their end."),
    option(AnswerConfig, "grammar", metavar="TEXT_OR_FILE", help="Completions are sentences of this Lark grammar."),
    option(
        AnswerConfig,
        "aggregate",
        type=click.Choice(AGGREGATES),
        help="With --num-samples: write the completion that most samples of a row agree on, and their share.",
    ),
)

PART_OPTIONS = options(
    option(OutputConfig, "rows_per_shard", type=int, help="Rows of the dataset per Parquet part."),
    option(OutputConfig, "compression", type=click.Choice(COMPRESSIONS), help="Of the Parquet parts."),
    option(OutputConfig, "include_prompt", switch=True, help="Write the rendered prompt beside its completion."),
    option(OutputConfig, "max_error_rate", type=float, help="A larger share of error rows ends with exit code 3."),
)

OUTPUT_OPTIONS = options(
    click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Run directory."),
    PART_OPTIONS,
)

ENGINE_OPTIONS = options(
    option(
        EngineConfig,
        "engine",
        type=click.Choice(ENGINES),
        help="paged: continuous batching, for models that support it. static: transformers' generate. fake: no model.",
    ),
    option(EngineConfig, "max_batch_rows", type=int, help="Rows computed at once [default: 512; 256 on a CPU]."),
    option(
        EngineConfig,
        "max_batch_tokens",
        type=int,
        help="Tokens computed in one step, prompts in chunks included [default: 4096; 2048 on a CPU].",
    ),
    option(
        EngineConfig,
        "kv_cache_memory",
        type=Size(),
        metavar="SIZE",
        help="KV cache per process, e.g. 20GiB [default: 85 % of what is free on the GPU; 40 % on a CPU].",
    ),
    option(EngineConfig, "stall_timeout", type=float, help="Seconds without a token before giving up. 0: never."),
    option(
        EngineConfig,
        "lease_timeout",
        type=float,
        metavar="SECONDS",
        help="Seconds of silence after which a worker counts as dead and others take over its shards. The run keeps "
        "the value; a restart may change it [default: 60].",
    ),
    option(EngineConfig, "cuda_graphs", switch=True, help="On a GPU, record decode steps and replay them."),
    click.option("--load-in-8bit", is_flag=True, hidden=True),
    click.option("--load-in-4bit", is_flag=True, hidden=True),
    click.option("--device-map", hidden=True),
    click.option("--kernel-inject", is_flag=True, hidden=True),
)

CONFIG_OPTION = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=read_config_file,
    is_eager=True,
    expose_value=False,
    help="TOML file with any of these options; the command line wins.",
)


def to_config(values: dict[str, Any]) -> RunConfig:
    """Sort option values into the configuration.

    Raises:
        UsageError: a value is out of range, or an option of other tools was given that cannot work here.
    """
    _refuse_foreign_options(values)
    if not values["output"].name:
        raise UsageError("--output is empty or the root. Name a directory for this run.")

    def section(cls: Section) -> Any:
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    return RunConfig(
        model=section(ModelConfig),
        data=section(DataConfig),
        prompt=section(PromptConfig),
        sampling=section(SamplingParams),
        answer=section(AnswerConfig),
        output=section(OutputConfig),
        engine=section(EngineConfig),
        verbose=values["verbose"],
    )


def _refuse_foreign_options(values: dict[str, Any]) -> None:
    if values["load_in_8bit"] or values["load_in_4bit"]:
        raise UsageError(
            "--load-in-8bit and --load-in-4bit cannot work here: DeepSpeed cannot shard quantized layers. "
            "Use --dtype float16 and a larger --tensor-parallel-size."
        )
    if values["device_map"]:
        raise UsageError(
            "--device-map cannot work here: DeepSpeed places the model, one process per GPU. "
            "Use --tensor-parallel-size."
        )
    if values["kernel_inject"]:
        raise UsageError(
            "--kernel-inject is not offered: DeepSpeed's injected kernels crash or give wrong tokens with current "
            "transformers. Leave it out; layers are sharded by AutoTP."
        )
