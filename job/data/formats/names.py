"""Names for the columns of a table whose header may lack some or repeat them."""

from collections.abc import Sequence


def unique_names(header: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each column: of an empty name its position, and of a repeated one the name with a number.

    >>> unique_names(["", "prompt", "prompt", "prompt_2"])
    ('column_1', 'prompt', 'prompt_3', 'prompt_2')
    """
    names: list[str] = []
    taken = set(header)
    for position, title in enumerate(header, start=1):
        name = title or f"column_{position}"
        number = 1
        while name in names or (name != title and name in taken):
            number += 1
            name = f"{title or 'column'}_{number if title else position + number - 1}"
        names.append(name)
    return tuple(names)


def name_notes(where: str, header: Sequence[str], names: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Return notes on columns that have other names than in the header, or are left out.

    Args:
        kept: the columns that there are in the end.
    """
    notes = []
    for position, (title, name) in enumerate(zip(header, names, strict=True), start=1):
        if name not in kept:
            notes.append(f"{where}: column {position} has no name and no values; it is left out")
        elif title != name:
            why = f"is another {title!r}" if title else "has no name"
            notes.append(f"{where}: column {position} {why}; it is called {name!r} here")
    return notes
