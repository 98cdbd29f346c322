"""The options that define a run, each made from a field of the configuration or of a mode."""

import re
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from job.cli.config_file import read_config_file
from job.config import (
    COMPRESSIONS,
    DTYPES,
    ENGINES,
    LONG_PROMPT_POLICIES,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OutputConfig,
    PromptConfig,
    SamplingConfig,
)
from job.data.formats import ENDINGS
from job.modes.mode import Mode, OptionSpec
from job.modes.registry import MODES

Command = TypeVar("Command", bound=Callable[..., Any])
Section = type[ModelConfig | DataConfig | PromptConfig | SamplingConfig | OutputConfig | EngineConfig | Mode]


def split_commas(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Accept ``--x a,b`` for ``--x a --x b``. Refuse a value without any name: it would mean everything."""
    parts = tuple(part.strip() for value in values for part in value.split(",") if part.strip())
    if values and not parts:
        raise click.BadParameter(f"{values[0]!r} contains no name. Give one, or leave the option out.", ctx, param)
    return parts


class Size(click.ParamType[int]):
    """A number of bytes, with or without a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes. GB and GiB are both 1024 ** 3, as for memory in Slurm.

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
    """Make an option from a configuration field. Its default is defined there and nowhere else."""
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
        help="Precision. auto is float16 on CUDA, or bfloat16 if a bfloat16 checkpoint overflows in it; on a CPU, "
        "bfloat16 if the processor supports it, else float32.",
    ),
    option(EngineConfig, "tensor_parallel_size", type=int, help="Processes (GPUs) that share one copy of the model."),
    option(ModelConfig, "trust_remote_code", is_flag=True, help="Run Python code that comes with the model."),
    option(
        ModelConfig,
        "max_model_len",
        type=int,
        help="Maximum number of prompt plus completion tokens [default: the model's].",
    ),
)

DATA_OPTIONS = options(
    click.option(
        "--dataset",
        required=True,
        metavar="ID_OR_PATH",
        help=f"Dataset: a local file ({', '.join(ENDINGS)}), a glob, or a directory of such files or from "
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
    option(DataConfig, "limit", type=int, help="Process only the first N rows."),
    option(DataConfig, "id_column", help="Column to write right after the indices."),
    option(
        DataConfig,
        "keep_columns",
        multiple=True,
        help="Columns to copy to the output; '*' for all. Repeat or use commas.",
    ),
)

PROMPT_OPTIONS = options(
    option(PromptConfig, "prompt_column", help="Column with the prompt [default: prompt]."),
    option(PromptConfig, "messages_column", help="Column with a list of {role, content}, or that as JSON text."),
    option(
        PromptConfig,
        "prompt_template",
        metavar="TEXT_OR_FILE",
        help="Jinja2 template over the columns, e.g. 'Summarize: {{ text }}', or a file with one.",
    ),
    option(PromptConfig, "system_prompt", help="System message before every prompt."),
    option(
        PromptConfig,
        "examples",
        metavar="FILE",
        help="Few-shot examples before every prompt: JSON lines with the prompt's columns and 'completion'.",
    ),
    option(PromptConfig, "chat", switch=True, help="Apply the tokenizer's chat template [default: if it has one]."),
    option(
        PromptConfig,
        "max_prompt_tokens",
        type=int,
        help="Maximum number of prompt tokens [default: what the answer leaves of the model's context].",
    ),
    option(
        PromptConfig,
        "on_long_prompt",
        type=click.Choice(LONG_PROMPT_POLICIES),
        help="For longer prompts, make an error row, or cut the row's text (never the chat template) on the left or "
        "right.",
    ),
)

SAMPLING_OPTIONS = options(
    option(SamplingConfig, "max_new_tokens", type=int, help="Maximum number of tokens to generate per completion."),
    option(SamplingConfig, "temperature", type=float, help="Sampling temperature (0: greedy)."),
    option(
        SamplingConfig,
        "top_p",
        type=float,
        help="Sample from the most likely tokens whose probabilities sum to this (1: off).",
    ),
    option(SamplingConfig, "top_k", type=int, help="Sample from the K most likely tokens (0: off)."),
    option(
        SamplingConfig,
        "min_p",
        type=float,
        help="Drop tokens less likely than this times the most likely one (0: off).",
    ),
    option(
        SamplingConfig,
        "repetition_penalty",
        type=float,
        help="Above 1, make tokens that were already seen less likely (1: off).",
    ),
    option(
        SamplingConfig,
        "stop",
        multiple=True,
        callback=None,
        help="Text that ends a completion and is cut off; repeat for several. A line break in bash: $'\\n'.",
    ),
    option(SamplingConfig, "num_samples", type=int, help="Completions per row; they differ if temperature is above 0."),
    option(
        SamplingConfig,
        "seed",
        type=int,
        help="Random seed. Every draw depends only on it, row_idx, sample_idx and position.",
    ),
    option(SamplingConfig, "ignore_eos", is_flag=True, help="Always generate max-new-tokens tokens; for benchmarks."),
)


def mode_option(mode: type[Mode], field: Field[Any]) -> Callable[[Command], Command]:
    """Make an option from a mode's field, which defines everything that is shown."""
    spec: OptionSpec = field.metadata["option"]
    attributes: dict[str, Any] = {"help": spec.help, "metavar": spec.metavar}
    if field.default is False:
        attributes["is_flag"] = True
    elif field.default == ():
        attributes |= {"multiple": True, "callback": None}
    else:
        attributes["type"] = click.Choice(spec.choices) if spec.choices else spec.type
    return option(mode, field.name, **attributes)


MODE_OPTIONS = options(*(mode_option(mode, field) for mode in MODES for field in fields(mode)))

PART_OPTIONS = options(
    option(OutputConfig, "rows_per_shard", type=int, help="Number of dataset rows per Parquet part."),
    option(OutputConfig, "compression", type=click.Choice(COMPRESSIONS), help="Parquet compression codec."),
    option(OutputConfig, "include_prompt", switch=True, help="Write the rendered prompt next to its completion."),
    option(OutputConfig, "max_error_rate", type=float, help="Exit with code 3 if a larger share of rows are errors."),
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
    option(
        EngineConfig,
        "max_batch_rows",
        type=int,
        help="Maximum number of rows computed at once [default: 512; 256 on a CPU].",
    ),
    option(
        EngineConfig,
        "max_batch_tokens",
        type=int,
        help="Maximum number of tokens computed in one step, including chunks of prompts [default: 4096; 2048 on a "
        "CPU].",
    ),
    option(
        EngineConfig,
        "kv_cache_memory",
        type=Size(),
        metavar="SIZE",
        help="Memory for the KV cache of each process, e.g. 20GiB [default: 85 % of the free memory on a GPU; 40 % on "
        "a CPU].",
    ),
    option(
        EngineConfig, "stall_timeout", type=float, help="Give up after this many seconds without a token (0: never)."
    ),
    option(
        EngineConfig,
        "lease_timeout",
        type=float,
        metavar="SECONDS",
        help="Seconds of silence after which a worker counts as dead and others take over its shards. The value is "
        "stored with the run; a restart may change it [default: 60].",
    ),
    option(
        EngineConfig, "cuda_graphs", switch=True, help="On a GPU, record decode steps as CUDA graphs and replay them."
    ),
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
