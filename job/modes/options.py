"""How a field of a dataclass is declared as an option of the command line: its name, default and help in one place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionSpec:
    """How the command line shows a field. The option's name, type and default are those of the field.

    A truth value whose default is False is a flag, any other one a switch with ``--no-``. A field whose default is ()
    may be repeated.
    """

    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    """The allowed values; empty: any."""
    read: Callable[[Any], Any] | None = None
    """From what the user typed to the value, such as the text of a file that was named. Raises ``UsageError``."""
    may_have_commas: bool = False
    """Whether ``--x a,b`` stands for ``--x a --x b``, unless ``a,b`` is a name itself. See ``data.separated``."""
    may_be_empty: bool = True
    """Whether an empty list, which a TOML file or Python may have, means what it means to leave the option out."""
    is_size: bool = False
    """Whether the value is a number of bytes, which may be given with a unit."""
    is_path: bool = False
    """Whether the value may be a path that begins with ``~``."""
    is_switch: bool = False
    """Whether there is ``--no-`` although the default is False."""
    may_be_number: bool = False
    """Whether a TOML file or Python may give the text as a whole number, too."""
    is_object: bool = False
    """Whether the value is a JSON object, which may be a table in a TOML file. It is kept as text."""


def option(default: Any, help: str, **attributes: Any) -> Any:
    """Declare a field as an option; see ``OptionSpec``."""
    return field(default=default, metadata={"option": OptionSpec(help=help, **attributes)})
