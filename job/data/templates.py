"""Templates that users write: Jinja2, in its sandbox, because they come with datasets and must not reach Python.

Besides, a template must give the same text in every run, and none that nobody has written: random draws, nulls and
Python's own objects never reach a prompt.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import wraps
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.filters
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from job.errors import UsageError, first_line, shorten

DRAWING_FILTER, DRAWING_FUNCTION = "random", "lipsum"
"""What of Jinja2 draws at random, without a seed."""

LOADERS = (jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport, jinja2.nodes.Extends)
"""Tags that need a second template."""

TEXT_FILTERS = (
    *("capitalize", "center", "e", "escape", "forceescape", "format", "indent", "lower", "replace", "safe", "string"),
    *("striptags", "title", "trim", "truncate", "upper", "urlencode", "urlize", "wordcount", "wordwrap"),
)
"""Filters that make text of what they are given, whatever it is."""


def compile_template(text: str) -> jinja2.Template:
    """Compile a template in the sandbox.

    Raises:
        UsageError: its syntax is wrong, it draws at random, or it needs another file; the message gives the line.
    """
    environment = _Environment()
    try:
        _check(environment.parse(text))
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text else ""
        raise UsageError(
            f"--prompt-template, line {error.lineno}: {str(error.message).rstrip('.')}. The line is: {shorten(line)}"
        ) from None


def _check(template: jinja2.nodes.Template) -> None:
    """Refuse what Jinja2 could do and a prompt must not, wherever in the template it stands.

    Raises:
        TemplateSyntaxError: there is such a thing.
    """
    for node in template.find_all((jinja2.nodes.Filter, jinja2.nodes.Call, *LOADERS)):
        if isinstance(node, LOADERS):
            reason = "A template cannot take in another file. Put its text in this place"
            raise jinja2.TemplateSyntaxError(reason, node.lineno)
        called = node.node if isinstance(node, jinja2.nodes.Call) else node
        name = getattr(called, "name", None)
        if name == (DRAWING_FUNCTION if isinstance(node, jinja2.nodes.Call) else DRAWING_FILTER):
            reason = f"{name!r} draws at random: a restart would give other prompts. Leave it out"
            raise jinja2.TemplateSyntaxError(reason, node.lineno)


def template_columns(text: str, columns: Collection[str] = ()) -> list[str]:
    """Return the variables that a template takes from outside: the columns it needs.

    Args:
        columns: of the dataset. One with the name of a function of Jinja2, such as ``range``, hides the function.

    Raises:
        UsageError: see ``compile_template``.

    >>> template_columns("{% for x in rows %}{{ x }}{{ name }}{% endfor %}")
    ['name', 'rows']
    """
    compile_template(text)
    environment = _Environment()
    for name in columns:
        environment.globals.pop(name, None)
    try:
        return sorted(jinja2.meta.find_undeclared_variables(environment.parse(text)))
    except jinja2.UndefinedError as error:  # constants are joined here: {{ 'a' ~ {}.x }}
        raise UsageError(f"--prompt-template: {first_line(error)}.") from None


def _printable(value: Any) -> Any:
    """Let a null, and what only Python knows, be an error: no model should read None or <built-in method ...>.

    Raises:
        ValueError: the value is such a one.
    """
    if value is None:
        raise ValueError("a null value; write {{ column or '' }} if it may be missing")
    if isinstance(value, jinja2.Undefined):  # has an error of its own, which names it
        return value
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        raise ValueError(f"{name!r} is a function here, and no value; there is no key of that name")
    if isinstance(value, Iterator):
        raise ValueError(f"a {type(value).__name__} has no text; write {{{{ ... | list }}}} or {{{{ ... | join }}}}")
    return value


def _of_printable(text_filter: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that takes only what could be printed."""

    @wraps(text_filter)  # with Jinja2's marks of what the filter's first argument is
    def apply(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _printable(value)
        return text_filter(*args, **kwargs)

    return apply


def _join(environment: jinja2.Environment, values: Iterable[Any], separator: str = "", attribute: Any = None) -> str:
    """Do what Jinja2's filter ``join`` does."""
    if attribute is not None:
        values = map(jinja2.filters.make_attrgetter(environment, attribute), values)
    return str(separator).join(str(_printable(value)) for value in values)


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    """Holds what ``~`` joins to the rules for what is printed."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Any) -> None:
        """Write the code of ``a ~ b``."""
        self.write("environment.text_of((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with our rules."""

    code_generator_class = _CodeGenerator

    def __init__(self) -> None:
        """Take the place of some of Jinja2's functions."""
        super().__init__(undefined=jinja2.StrictUndefined, finalize=_printable, autoescape=False)
        del self.filters[DRAWING_FILTER], self.globals[DRAWING_FUNCTION]
        for name in TEXT_FILTERS:
            self.filters[name] = _of_printable(self.filters[name])
        self.filters["join"] = jinja2.pass_environment(_join)
        self.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return ``obj.attribute``; of an object from the dataset its key, before a method of Python's with that name.

        >>> compile_template("{{ row.items }}").render(row={"items": 3})
        '3'
        """
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def text_of(self, values: Iterable[Any]) -> str:
        """Return the text of ``a ~ b``."""
        return "".join(str(_printable(value)) for value in values)
