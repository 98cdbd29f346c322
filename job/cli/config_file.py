"""``--config``: TOML files with option values."""

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from job.cli.foreign import advice_on
from job.cli.json_object import JsonObject
from job.cli.text_or_number import TextOrNumber
from job.errors import UsageError, shorten
from job.wording import meant

OTHER_LANGUAGES = {".yaml": "YAML", ".yml": "YAML", ".json": "JSON", ".ini": "INI", ".py": "Python"}

EXAMPLE = 'model = "..." or max-new-tokens = 64'

TEXTS = "a string or a list of strings"
WHOLE = type(click.INT)
"""The type of options whose values are whole numbers; some have a class of their own that derives from it."""


def read_config_files(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> None:
    """Make the files' values the defaults of the options, so that the command line wins, then the later file.

    Keys are option names, with ``-`` or ``_``. Tables only group them for the reader, but for those that are the value
    of an option.

    Raises:
        UsageError: a file is not TOML, or names an unknown option.
    """
    for path in paths:
        where = f"--config {path}"
        ctx.default_map = {**(ctx.default_map or {}), **values_in(read_toml(path, where), where, ctx.command)}


def values_in(table: Mapping[str, Any], where: str, command: click.Command) -> dict[str, Any]:
    """Return the values of a command's options in a table, by their names.

    Args:
        where: what the table is, for messages.

    Raises:
        UsageError: it names an unknown option, or one twice, or a value has another type than its option.
    """
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    del options["config"]
    _check_groups(table, where, options)
    values = dict(_values(table, where, {name for name, each in options.items() if isinstance(each.type, JsonObject)}))
    for name, value in values.items():
        if name not in options:
            raise UsageError(f"{where}: there is no option {name!r}. {_advice(name, options)}")
        _check_toml_type(where, options[name], value)
        if options[name].multiple and not isinstance(value, list):
            values[name] = [value]
    return values


def _check_groups(table: Mapping[str, Any], where: str, options: Mapping[str, click.Option]) -> None:
    """Refuse a group that has the name of an option: its values would be those of other options.

    Raises:
        UsageError: there is one.
    """
    for key, value in table.items():
        option = options.get(key.replace("-", "_"))
        if isinstance(value, dict) and option is not None and not isinstance(option.type, JsonObject):
            pairs = [f"{name}={inner}" for name, inner in value.items()]
            advice = f"Write {key} = {json.dumps(pairs)}." if option.multiple else "Use another name for the group."
            raise UsageError(f"{where}: [{key}] is a table, but {key} is an option with another value. {advice}")


def _values(table: Mapping[str, Any], where: str, objects: Collection[str | None]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values in a table, and in the tables in it.

    Args:
        objects: options whose value may be a table.

    Raises:
        UsageError: it names an option twice.
    """
    seen = set()
    for key, value in table.items():
        is_group = isinstance(value, dict) and key.replace("-", "_") not in objects
        for inner_key, inner in (value if is_group else {key: value}).items():
            name = inner_key.replace("-", "_")
            if name in seen:
                raise UsageError(f"{where}: {name} is given twice. Leave one out.")
            seen.add(name)
            yield name, inner


def read_toml(path: Path, where: str) -> dict[str, Any]:
    """Return the contents of a TOML file.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8: {error}. Save it as UTF-8.") from None
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}{_explain(path, text, str(error))}") from None


def _explain(path: Path, text: str, reason: str) -> str:
    """Return what is wrong with a file that is not TOML, with the line and how to write it."""
    language = OTHER_LANGUAGES.get(path.suffix.lower()) or ("JSON" if text.lstrip().startswith("{") else None)
    if language is not None:
        return f" is {language}; it must be TOML, with lines such as {EXAMPLE}."
    found = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", reason)
    lines = text.splitlines()
    if found is None or not 0 < int(found[2]) <= len(lines):
        return f": {reason}."
    line = lines[int(found[2]) - 1].strip()
    return f", line {found[2]}: {found[1]}. The line is: {shorten(line)}. {_rewritten(line)}"


def _rewritten(line: str) -> str:
    """Return how a line would be right.

    >>> _rewritten("model = meta-llama/Llama"), _rewritten("max-new-tokens: 64"), _rewritten("chat = False")
    ('Write model = "meta-llama/Llama".', 'Write max-new-tokens = 64.', 'Write chat = false.')
    """
    found = re.fullmatch(r"([\w-]+)\s*[=:]\s*(\S.*)", line)
    if found is None:
        return f"Write lines such as {EXAMPLE}."
    key, value = found[1], found[2]
    if value.lower() in ("true", "false"):
        value = value.lower()
    try:
        tomllib.loads(f"x = {value}")
    except tomllib.TOMLDecodeError:
        text = value.strip("\"'")
        value = f"'{text}'" if '"' in text or "\\" in text else f'"{text}"'
    return f"Write {key} = {value}."


def _advice(name: str, options: Mapping[str, click.Option]) -> str:
    """Return what to write in place of a key that is not an option."""
    positive = name.removeprefix("no_")
    if positive != name and positive in options:
        return f"Write {positive} = false."
    if name == "config":
        return "Give --config several times to read several files."
    foreign = advice_on(name)
    if foreign is not None:
        return foreign
    close = meant(name, options)
    return "See job run --help." if close is None else f"Did you mean {close.replace('_', '-')}?"


def _check_toml_type(where: str, option: click.Option, value: Any) -> None:
    """Refuse a TOML value of the wrong type: click would silently turn true into 1, and 3.7 into 3."""
    if option.is_flag:
        fits, need = isinstance(value, bool), "true or false"
    elif option.multiple:
        kind, need = (int, "a whole number, or a list of them") if isinstance(option.type, WHOLE) else (str, TEXTS)
        items = value if isinstance(value, list) else [value]
        fits = all(isinstance(item, kind) and not isinstance(item, bool) for item in items)
    elif isinstance(option.type, WHOLE):
        fits, need = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif option.type is click.FLOAT:
        fits, need = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    elif isinstance(option.type, TextOrNumber):
        fits, need = isinstance(value, str | int) and not isinstance(value, bool), "a whole number or a string"
    elif isinstance(option.type, JsonObject):
        fits, need = isinstance(value, dict | str), "a table, or a string with a JSON object"
    else:
        fits, need = isinstance(value, str), "a string"
    if not fits:
        example = ', such as ["*", "OLD=NEW"]' if option.name == "keep_columns" else ""
        raise UsageError(f"{where}: {option.name} is {value!r}; it must be {need}{example}.")
