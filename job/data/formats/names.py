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
