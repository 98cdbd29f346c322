"""The options that define a run, each made from a field of the configuration or of a mode."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import click
from click.core import ParameterSource

from job.cli.config_file import read_config_files
from job.cli.foreign import advice_on_value
from job.cli.json_object import JsonObject
from job.cli.text_or_number import TextOrNumber
from job.config import (
    DataConfig,
    EngineConfig,
    LaunchConfig,
    ModelConfig,
    OutputConfig,
    PromptConfig,
    SamplingConfig,
)
from job.data.formats import ENDINGS
from job.errors import UsageError
from job.launch.activity import telling_what_takes_long
from job.modes.mode import Mode
from job.modes.options import OptionSpec
from job.modes.registry import MODES
from job.modes.texts import expand_home
from job.output.store.addresses import local_path, normal
from job.run.options import size_of

Command = TypeVar("Command", bound=Callable[..., Any])
Section = ModelConfig | DataConfig | PromptConfig | SamplingConfig | OutputConfig | EngineConfig | LaunchConfig | Mode


def check_names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse values without any name, which would mean everything. What the commas in them are is seen later."""
    split_commas(ctx, param, values)
    return values


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
        """Return the number of bytes."""
        size = size_of(str(value))
        if size is None:
            self.fail(f"{value!r} is not a size such as 20GiB or 512MiB.", param, ctx)
        return size


class TokenId(click.types.IntParamType):
    """The id of a token."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the id."""
        with contextlib.suppress(ValueError):
            return int(value)
        flag = "" if param is None else param.opts[0]
        parts = [part for part in str(value).replace(",", " ").split() if part]
        if all(part.isdecimal() for part in parts):
            self.fail(f"{value!r} is not one id. Write {' '.join(f'{flag} {part}' for part in parts)}.", param, ctx)
        self.fail(f"{value!r} is not the id of a token, which is a whole number. For a text, use --stop.", param, ctx)


class Address(click.ParamType[Path]):
    """A path, which may begin with ``~``: a shell does not expand it in ``--x=~/y``, and never in a TOML file."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        return Path(expand_home(str(value)))


class Place(click.ParamType[str]):
    """A run directory: a path, which may begin with ``~``, or an address."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it in the form in which it is shown."""
        return normal(expand_home(str(value)))


def tell_if_silent(ctx: click.Context, param: click.Parameter, place: str) -> str:
    """While a command looks at a run in an object store, say so if that does not answer."""
    if local_path(place) is None:
        telling = telling_what_takes_long(lambda text: click.echo(text, err=True), only_servers=True)
        ctx.with_resource(telling)
    return place


def refuse_empty(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list in a TOML file that holds nothing, where that would change what is asked for."""
    is_from_file = ctx.get_parameter_source(str(param.name)) is ParameterSource.DEFAULT_MAP
    if is_from_file and not values:
        raise UsageError(f"{param.opts[0]} is an empty list. Give what it should hold, or leave it out.")
    return values


RUN_ARGUMENT = click.argument("output", type=Place(), callback=tell_if_silent)
"""The run that a command looks at."""


class Text(click.types.StringParamType):
    """A Hub id or a path, which may begin with ``~``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text."""
        return expand_home(super().convert(value, param, ctx))


class Word(click.Choice[str]):
    """One of some words, or another tool's name for one of them, which is refused with ours."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word."""
        if value not in self.choices and param is not None:
            advice = advice_on_value(str(param.name), str(value))
            if advice is not None:
                listed = ", ".join(repr(choice) for choice in self.choices)
                self.fail(f"{value!r} is not one of {listed}. {advice}", param, ctx)
        return super().convert(value, param, ctx)


def section(
    cls: type[Section], *, only: Sequence[str] = (), without: Sequence[str] = ()
) -> list[Callable[[Command], Command]]:
    """Make options of the fields of a dataclass that are declared as options, in their order."""
    wanted = [field for field in fields(cls) if "option" in field.metadata and field.name not in without]
    return [_option(cls, field) for field in wanted if not only or field.name in only]


def _option(cls: type[Section], field: Field[Any]) -> Callable[[Command], Command]:
    """Make an option of a field. Its default and its help are defined there and nowhere else."""
    spec: OptionSpec = field.metadata["option"]
    flag = "--" + field.name.replace("_", "-")
    attributes: dict[str, Any] = {"help": spec.help, "metavar": spec.metavar}
    if field.default == ():
        attributes |= {"multiple": True, "callback": check_names if spec.may_have_commas else None}
        if not spec.may_be_empty:
            attributes["callback"] = refuse_empty
    else:
        attributes |= {"default": field.default, "show_default": field.default is not None}
    kind = _type_of(get_type_hints(cls)[field.name])
    if kind is bool and (spec.is_switch or field.default is not False):
        flag = f"{flag}/--no-{field.name.replace('_', '-')}"
    elif kind is bool:
        attributes |= {"is_flag": True, "show_default": False}
    else:
        attributes["type"] = TokenId() if kind is int and field.default == () else _param_type(kind, spec)
    return click.option(flag, field.name, **attributes)


def _param_type(kind: type, spec: OptionSpec) -> Any:
    """Return click's type for a field's type."""
    if spec.is_size:
        return Size()
    if spec.is_object:
        return JsonObject()
    if spec.may_be_number:
        return TextOrNumber()
    if spec.choices:
        return Word(spec.choices)
    return Text() if spec.is_path else kind


def _type_of(hint: Any) -> type:
    """Return the type of one value of a field: ``int`` of ``int | None``, ``str`` of ``tuple[str, ...]``."""
    inner = [kind for kind in get_args(hint) if kind not in (type(None), Ellipsis)]
    kind: type = inner[0] if inner else hint
    return kind


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Apply options so that ``--help`` shows them in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


MODEL_OPTIONS = options(
    click.option(
        "--model",
        type=Text(),
        metavar="ID_OR_DIR",
        help="Model: a local directory, or a Hub id: org/name, org/name@revision or hf://org/name. With --adapter, it "
        "may be left out: the adapter names it.",
    ),
    *section(ModelConfig),
    *section(EngineConfig, only=["tensor_parallel_size"]),
)

DATA_OPTIONS = options(
    click.option(
        "--dataset",
        required=True,
        type=Text(),
        metavar="ID_OR_PATH",
        help=f"Dataset: a file ({', '.join(ENDINGS)}), a glob, or a directory of such files, here or at an address "
        "such as s3://bucket/data or https://host/file.csv; a directory from save_to_disk; or a Hub id: org/name, "
        "org/name@revision or hf://datasets/org/name/file.",
    ),
    *section(DataConfig),
)

PROMPT_OPTIONS = options(*section(PromptConfig))

SAMPLING_OPTIONS = options(*section(SamplingConfig))

MODE_OPTIONS = options(*(option for mode in MODES for option in section(mode)))

PART_OPTIONS = options(*section(OutputConfig))

OUTPUT_OPTIONS = options(
    click.option(
        "--output", required=True, type=Place(), metavar="DIR", help="Run directory, or s3://BUCKET/DIRECTORY."
    ),
    PART_OPTIONS,
)

ENGINE_OPTIONS = options(
    *section(EngineConfig, without=["tensor_parallel_size"]),
    *section(LaunchConfig),
)

CONFIG_OPTION = click.option(
    "--config",
    type=Address(),
    multiple=True,
    callback=read_config_files,
    is_eager=True,
    expose_value=False,
    metavar="FILE",
    help="TOML file with any of these options; the command line wins. Repeat for several: the last one wins.",
)
