"""Prompt templates: Jinja2 in its sandbox, because templates come with datasets and must not reach Python.

A template must also give the same text in every run, and only text that someone wrote: random draws, the clock, the
time zone, nulls and Python objects never reach a prompt.
"""

import datetime
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


KEYWORDS = frozenset(
    [
        *("and", "else", "false", "False", "if", "in", "is", "loop"),
        *("none", "None", "not", "or", "recursive", "self", "true", "True"),
    ]
)
"""Names that Jinja2 does not take for variables."""

STAND_INS = "\x1f\x1e\x1d\x1c"
"""Characters that Jinja2 takes for white space, but not for line ends."""

CLOCK_METHODS = frozenset({"now", "today", "utcnow", "fromtimestamp", "utcfromtimestamp", "astimezone", "timestamp"})
"""Methods of dates that depend on the clock or the time zone of the machine."""


class Template:
    """A template, and the columns that it needs."""

    def __init__(
        self,
        text: str,
        columns: Collection[str] = (),
        *,
        option: str = "--prompt-template",
        is_older: bool = False,
    ) -> None:
        """Compile it.

        Args:
            option: which gives it, for messages.
            columns: columns of the dataset, if they are known. A column with the name of a Jinja2 function, such as
                ``range``, hides the function.
            is_older: whether a run of version 0.1 or 0.2 goes on with it: every line end becomes ``\\n``, as Jinja2 has
                it, and methods that depend on the clock or the time zone are allowed.

        Raises:
            UsageError: the syntax is wrong, the template needs another file, or it uses no column.
        """
        environment = _Environment(columns, forbidden=() if is_older else CLOCK_METHODS)
        try:
            tree = environment.parse(text) if is_older else _parse(environment, text)
            _check(tree, environment)
            names = jinja2.meta.find_undeclared_variables(tree)
            self._template = environment.from_string(tree)
        except jinja2.TemplateSyntaxError as error:
            line = text.split("\n")[error.lineno - 1].strip() if text else ""
            reason = str(error.message).rstrip(".")
            raise UsageError(
                f"{option}, line {error.lineno}: {reason}. The line is: {shorten(line)}{_hint(line, columns)}"
            ) from None
        except jinja2.UndefinedError as error:  # constants are joined here: {{ 'a' ~ {}.x }}
            raise UsageError(f"{option}: {first_line(error)}.") from None
        if columns and not names:
            raise UsageError(_advice(text, columns, option))
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


def check_braces(text: str, columns: Collection[str]) -> None:
    """Refuse a column in single braces, as in Python: it would be the same text in every prompt.

    Raises:
        UsageError: the template has one.
    """
    tree = _Environment(columns).parse(text)
    for node in tree.find_all(jinja2.nodes.TemplateData):
        for found in re.finditer(r"\{\s*([^{}]+?)\s*\}", node.data):
            if found[1] in columns:
                literal = found[0].replace("'", "\\'")
                raise UsageError(
                    f"--prompt-template has {found[0]}, which is the same text in every prompt. Write "
                    f"{in_braces(found[1])} for the column, or {{{{ '{literal}' }}}} if the text is meant."
                )


def in_braces(column: str) -> str:
    """Return a template that consists of a column.

    >>> in_braces("question"), in_braces("Ticket ID"), in_braces("not")
    ('{{ question }}', "{{ row['Ticket ID'] }}", "{{ row['not'] }}")
    """
    return f"{{{{ {_variable(column)} }}}}"


def quoted_template(column: str) -> str:
    """Return the same, quoted for a shell."""
    template = in_braces(column)
    return f'"{template}"' if "'" in template else f"'{template}'"


def _parse(environment: jinja2.Environment, text: str) -> jinja2.nodes.Template:
    """Parse a template whose carriage returns are part of the text."""
    stand_in = next((char for char in STAND_INS if char not in text), None)
    if "\r" not in text or stand_in is None:
        return environment.parse(text)
    tree = environment.parse(text.replace("\r", stand_in))
    for data in tree.find_all(jinja2.nodes.TemplateData):
        data.data = data.data.replace(stand_in, "\r")
    for constant in tree.find_all(jinja2.nodes.Const):
        if isinstance(constant.value, str):
            constant.value = constant.value.replace(stand_in, "\r")
    return tree


def _hint(line: str, columns: Collection[str]) -> str:
    """Return how to write a column that a line with an error names, if its name is not an identifier."""
    named = [name for name in columns if _variable(name) != name and name.strip() and name.strip() in line]
    return f". Write {in_braces(max(named, key=len))} for that column." if named else ""


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


def _advice(text: str, columns: Collection[str], option: str) -> str:
    """Return the message for a template without columns, such as one with ``{question}``, as in Python."""
    meant = [name for name in re.findall(r"\{\s*(\w+)\s*\}", text) if name in columns]
    example = meant[0] if meant else next(iter(columns))
    return (
        f"{option} names no column, so it would be the same for all rows. Write a column in double braces, such as "
        f"{in_braces(example)}. Columns: {', '.join(columns)}."
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
    if isinstance(value, jinja2.utils.Cycler):  # its text is its address in memory
        raise ValueError("a cycler is not text; write {{ ... .next() }}")
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
    return column if column.isidentifier() and column not in KEYWORDS else f"{ROW}[{column!r}]"


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja2's sandbox with our rules for nulls, functions and filters."""

    def __init__(self, columns: Collection[str], forbidden: Collection[str] = CLOCK_METHODS) -> None:
        self._forbidden = forbidden
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

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may use an attribute of an object: not what depends on the machine or the moment."""
        is_moment = isinstance(obj, datetime.date | datetime.time)
        return not (is_moment and attr in self._forbidden) and super().is_safe_attribute(obj, attr, value)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Return plain JSON: Jinja2's own filter escapes it for HTML."""

    def null(unknown: Any) -> None:
        if not isinstance(unknown, _Null):
            raise TypeError(f"a {type(unknown).__name__} cannot be written as JSON")

    return json.dumps(value, ensure_ascii=False, indent=indent, default=null)
