"""Names in one option: several with commas between them, or a single one that has commas itself."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from job.remote.addresses import is_address


def separated(values: Sequence[str], is_name: Callable[[str], bool]) -> tuple[str, ...]:
    """Split values at commas, but not those that are names as they are.

    >>> separated(["a,b", "Yes, no"], {"Yes, no"}.__contains__)
    ('a', 'b', 'Yes, no')
    """
    parts = [[value] if is_name(value) else [part.strip() for part in value.split(",")] for value in values]
    return tuple(part for found in parts for part in found if part)


def column_named(name: str, columns: Collection[str]) -> str:
    """Return the column that a name means: this one, or the only one that differs by white space at its ends.

    >>> column_named("Kunde", ["Kunde ", "Datum"]), column_named("x", [" x", "x "])
    ('Kunde ', 'x')
    """
    if name in columns:
        return name
    close = [column for column in columns if column.strip() == name.strip()]
    return close[0] if len(close) == 1 else name


def renamed(value: str, columns: Collection[str]) -> tuple[str, str] | None:
    """Return the column and the new name that ``column=name`` means; None if it means something else.

    >>> renamed("completion=draft", ["completion"]), renamed("a=b", ["a=b"]), renamed("x=y", ["completion"])
    (('completion', 'draft'), None, None)
    """
    if column_named(value, columns) in columns:
        return None
    old, equals, new = value.rpartition("=")
    column = column_named(old.strip(), columns)
    is_name = equals and new.strip() and "," not in new
    return (column, new.strip()) if is_name and column in columns else None


def columns_to_keep(values: Sequence[str], columns: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Return the columns that ``--keep-columns`` means, and the names under which they are kept.

    >>> columns_to_keep(["id,completion=draft", "*"], ["id", "completion"])
    (('id', 'id'), ('completion', 'draft'), ('*', '*'))
    """
    names = separated(values, lambda value: column_named(value, columns) in columns or bool(renamed(value, columns)))
    return tuple(renamed(name, columns) or (column_named(name, columns),) * 2 for name in names)


def files_named(values: Sequence[str], dataset: str) -> tuple[str, ...]:
    """Return the files or globs that ``--data-files`` means, inside the dataset or anywhere."""
    return separated(values, lambda value: is_address(value) or any(Path(at, value).exists() for at in (dataset, "")))
