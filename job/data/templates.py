"""Prompt templates: Jinja2 in its sandbox, because templates come with datasets and must not reach Python.

A template must also give the same text in every run, and only text that someone wrote: random draws, nulls and Python
objects never reach a prompt.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from job.errors import UsageError, first_line, shorten

LOADERS = (jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport, jinja2.nodes.Extends)
"""Tags that need a second template."""

ROW = "row"
"""The variable that maps column names to values: ``row['Ticket ID']``. A column with this name hides it."""

DICT_METHODS = ("get", "items", "keys", "values")
"""Methods of ``row``: ``row.items`` is the method unless ``items`` is a column."""


class Template:
    """A template, and the columns that it needs."""

    def __init__(self, text: str, columns: Collection[str] = ()) -> None:
        """Compile it.

        Args:
            columns: columns of the dataset, if they are known. A column with the name of a Jinja2 function, such as
                ``range``, hides the function.

        Raises:
            UsageError: the syntax is wrong, the template needs another file, or it uses no column.
        """
        environment = _Environment(columns)
        try:
            tree = environment.parse(text)
            _check(tree, environment)
            self._template = environment.from_string(text)
            names = jinja2.meta.find_undeclared_variables(tree)
        except jinja2.TemplateSyntaxError as error:
            line = text.splitlines()[error.lineno - 1].strip() if text else ""
            reason = str(error.message).rstrip(".")
            raise UsageError(
                f"--prompt-template, line {error.lineno}: {reason}. The line is: {shorten(line)}"
            ) from None
        except jinja2.UndefinedError as error:  # constants are joined here: {{ 'a' ~ {}.x }}
            raise UsageError(f"--prompt-template: {first_line(error)}.") from None
        if columns and not names:
            raise UsageError(_advice(text, columns))
        of_row = set() if ROW in columns or ROW not in names else _columns_of_row(tree, columns)
        self.needs_all = of_row is None
        """Whether the columns that it uses are known only while it runs."""
        named = names - ({ROW} - {*columns}) | (of_row or set())
        self.columns = [*columns, *sorted(named - {*columns})] if self.needs_all else sorted(named)
        """The names of the columns that it needs."""

    def render(self, values: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> str:
        """Return the text for a row.

        Args:
            values: the row's values by column.
            others: variables that are not columns.

        Raises:
            Exception: whatever the template's expressions raise.
        """
        known = {name: _null(name) if value is None else value for name, value in values.items()}
        return self._template.render({ROW: known} | known | dict(others or {}))


def _check(tree: jinja2.nodes.Template, environment: jinja2.Environment) -> None:
    """Refuse tags and filters that would fail at run time. Jinja2 itself does not check inside ``if`` in advance.

    Raises:
        TemplateSyntaxError: the template uses one of them.
    """
    for node in tree.find_all((jinja2.nodes.Filter, *LOADERS)):
        if isinstance(node, LOADERS):
            reason = "A template cannot include another file. Insert its text here"
            raise jinja2.TemplateSyntaxError(reason, node.lineno)
        if isinstance(node, jinja2.nodes.Filter) and node.name not in environment.filters:
            raise jinja2.TemplateSyntaxError(f"There is no filter {node.name!r}", node.lineno)


def _columns_of_row(tree: jinja2.nodes.Template, columns: Collection[str]) -> set[str] | None:
    """Return the columns that a template uses as ``row['name']`` or ``row.name``; None if it uses ``row`` otherwise."""
    uses = sum(node.name == ROW for node in tree.find_all(jinja2.nodes.Name))
    keys: list[str] = []
    for item in tree.find_all(jinja2.nodes.Getitem):
        if getattr(item.node, "name", None) == ROW and isinstance(item.arg, jinja2.nodes.Const):
            keys.append(item.arg.value)
    for attribute in tree.find_all(jinja2.nodes.Getattr):
        is_method = attribute.attr in DICT_METHODS and attribute.attr not in columns
        if getattr(attribute.node, "name", None) == ROW and not is_method:
            keys.append(attribute.attr)
    return set(keys) if len(keys) == uses and all(isinstance(key, str) for key in keys) else None


def _advice(text: str, columns: Collection[str]) -> str:
    """Return the message for a template without columns, such as one with ``{question}``, as in Python."""
    meant = [name for name in re.findall(r"\{\s*(\w+)\s*\}", text) if name in columns]
    example = meant[0] if meant else next(iter(columns))
    return (
        "--prompt-template names no column, so all prompts would be the same. Write a column in double braces, such as "
        f"{{{{ {_variable(example)} }}}}. Columns: {', '.join(columns)}."
    )


def _printable(value: Any) -> Any:
    """Refuse nulls and Python objects: no model should read None or <built-in method ...>.

    Raises:
        ValueError: the value is one of these.
    """
    if value is None:
        raise ValueError("a null value; write {{ ... or '' }} if it may be missing")
    if isinstance(value, jinja2.Undefined):  # raises its own error, which names the variable
        return value
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        raise ValueError(f"{name!r} is a function here, not a value; there is no key with that name")
    if isinstance(value, Iterator):
        name = type(value).__name__
        raise ValueError(f"a {name} is not text; write {{{{ ... | list }}}} or {{{{ ... | join }}}}")
    return value


class _Null(jinja2.Undefined):
    """A column that is null in this row. Conditions treat it as None; turning it into text is an error."""

    __slots__ = ()
    __iter__ = __len__ = __str__ = jinja2.Undefined._fail_with_undefined_error

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, _Null)


def _null(column: str) -> _Null:
    return _Null(f"column {column!r} is null; write {{{{ {_variable(column)} or '' }}}} if it may be missing")


def _variable(column: str) -> str:
    """Return how a template refers to a column.

    >>> _variable("question"), _variable("Ticket ID")
    ('question', "row['Ticket ID']")
    """
    return column if column.isidentifier() else f"{ROW}[{column!r}]"


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja2's sandbox with our rules for nulls, functions and filters."""

    def __init__(self, columns: Collection[str]) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined, finalize=_printable, autoescape=False, keep_trailing_newline=True
        )
        del self.filters["random"]  # it has no seed: a restart would give different prompts
        for name in ("lipsum", *columns):  # lipsum is random, too
            self.globals.pop(name, None)
        self.filters["tojson"] = _to_json
        self.tests |= {
            "none": lambda value: value is None or isinstance(value, _Null),
            "defined": lambda value: not isinstance(value, jinja2.Undefined) or isinstance(value, _Null),
            "undefined": lambda value: isinstance(value, jinja2.Undefined) and not isinstance(value, _Null),
        }

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return ``obj.attribute``. In an object from the dataset, a key comes before a Python method of the same name.

        >>> Template("{{ d.items }}").render({"d": {"items": 3}})
        '3'
        """
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Return plain JSON: Jinja2's own filter escapes it for HTML."""

    def null(unknown: Any) -> None:
        if not isinstance(unknown, _Null):
            raise TypeError(f"a {type(unknown).__name__} cannot be written as JSON")

    return json.dumps(value, ensure_ascii=False, indent=indent, default=null)
