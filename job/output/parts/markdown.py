"""Values in Markdown: inline code and code blocks that show any text as it is."""

import json
import re


def code(value: object) -> str:
    """Return a value as inline code in Markdown; anything but plain text is written as JSON.

    >>> code("a"), code("a`b"), code("a\\n"), code(0.5)
    ('`a`', '`` a`b ``', '`"a\\\\n"`', '`0.5`')
    """
    text = value if isinstance(value, str) and value and value.isprintable() else json.dumps(value, ensure_ascii=False)
    if "`" not in text:
        return f"`{text}`"
    ticks = "`" * (_longest_ticks(text) + 1)
    return f"{ticks} {text} {ticks}"


def block(text: str) -> str:
    """Return a text as a code block, with fences that are longer than any in the text."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}\n{text}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
