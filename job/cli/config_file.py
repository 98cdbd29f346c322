"""``--config``: a TOML file with option values."""

import tomllib
from pathlib import Path
from typing import Any

import click

from job.errors import UsageError


def read_config_file(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make the file's values the defaults of the options, so that the command line wins.

    Keys are option names, with ``-`` or ``_``. Tables only group them for the reader.

    Raises:
        UsageError: the file is not TOML, or names an unknown option.
    """
    if path is None:
        return
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}.") from None
    values: dict[str, Any] = {}
    for key, value in content.items():
        for inner_key, inner in (value if isinstance(value, dict) else {key: value}).items():
            name = inner_key.replace("-", "_")
            if name in values:
                raise UsageError(f"--config {path}: {name} is given twice. Leave one out.")
            values[name] = inner
    options = {option.name: option for option in ctx.command.params if isinstance(option, click.Option)}
    for name, value in values.items():
        if name not in options or options[name] is param:
            positive = name.removeprefix("no_")
            hint = f"Write {positive} = false." if positive in options else "See job run --help."
            raise UsageError(f"--config {path}: there is no option {name!r}. {hint}")
        _check_toml_type(path, options[name], value)
        if options[name].multiple and isinstance(value, str):
            values[name] = [value]
    ctx.default_map = {**(ctx.default_map or {}), **values}


def _check_toml_type(path: Path, option: click.Option, value: Any) -> None:
    """Refuse a TOML value of the wrong type: click would silently turn true into 1, and 3.7 into 3."""
    if option.is_flag:
        fits, need = isinstance(value, bool), "true or false"
    elif option.multiple:
        items = value if isinstance(value, list) else [value]
        fits, need = all(isinstance(item, str) for item in items), "a string or a list of strings"
    elif option.type is click.INT:
        fits, need = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif option.type is click.FLOAT:
        fits, need = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        fits, need = isinstance(value, str), "a string"
    if not fits:
        raise UsageError(f"--config {path}: {option.name} is {value!r}; it must be {need}.")
