"""Templates that users write: Jinja2, in its sandbox, because they come with datasets and must not reach Python."""

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from job.errors import UsageError, shorten


def read_template(text_or_file: str) -> str:
    """Return a template's text; the argument is the text itself or the path of a file with it.

    Raises:
        UsageError: it looks like a path, but there is no such file, or none that holds text.
    """
    if "\n" in text_or_file or "{" in text_or_file:
        return text_or_file
    with contextlib.suppress(OSError, ValueError):  # too long for a name: no file
        if Path(text_or_file).is_file():
            return Path(text_or_file).read_text(encoding="utf-8-sig")
    raise UsageError(f"--prompt-template {text_or_file!r} is neither a file nor a template, such as '{{{{ text }}}}'.")


def compile_template(text: str) -> jinja2.Template:
    """Compile a template in the sandbox.

    Raises:
        UsageError: its syntax is wrong; the message gives the line.
    """
    try:
        return _environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text else ""
        raise UsageError(
            f"--prompt-template, line {error.lineno}: {str(error.message).rstrip('.')}. The line is: {shorten(line)}"
        ) from None


def template_columns(text: str, columns: Collection[str] = ()) -> list[str]:
    """Return the variables that a template takes from outside: the columns it needs.

    Args:
        columns: of the dataset. One with the name of a function of Jinja2, such as ``range``, hides the function.

    >>> template_columns("{% for x in rows %}{{ x }}{{ name }}{% endfor %}")
    ['name', 'rows']
    """
    compile_template(text)
    environment = _environment()
    for name in columns:
        environment.globals.pop(name, None)
    return sorted(jinja2.meta.find_undeclared_variables(environment.parse(text)))


def _refuse_null(value: Any) -> Any:
    """Let a null that a template prints be an error: no model should read the word None where a text is missing."""
    if value is None:
        raise ValueError("a null value; write {{ column or '' }} if it may be missing")
    return value


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_refuse_null, keep_trailing_newline=False, autoescape=False
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment
