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


def columns_named(values: Sequence[str], columns: Collection[str]) -> tuple[str, ...]:
    """Return the columns that the values of an option mean; see the others."""
    names = separated(values, lambda value: column_named(value, columns) in columns)
    return tuple(column_named(name, columns) for name in names)


def files_named(values: Sequence[str], dataset: str) -> tuple[str, ...]:
    """Return the files or globs that ``--data-files`` means, inside the dataset or anywhere."""
    return separated(values, lambda value: is_address(value) or any(Path(at, value).exists() for at in (dataset, "")))
