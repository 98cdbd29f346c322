"""Command lines for a shell, made of what the user typed."""

import re
import shlex
from collections.abc import Sequence


def shell_line(words: Sequence[str]) -> str:
    r"""Return a command on one line, quoted for bash.

    >>> print(shell_line(["job", "run", "--prompt-template", "Q: {{ q }}\nA:", "--limit", "3"]))
    job run --prompt-template $'Q: {{ q }}\nA:' --limit 3
    """
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _escaped(c) for c in escaped) + "'"


def _escaped(char: str) -> str:
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return short.get(char) or "".join(f"\\x{byte:02x}" for byte in char.encode())


def options_of_run(words: Sequence[str]) -> list[str]:
    """Return the options of ``job run`` in what was typed after ``job``.

    >>> options_of_run(["--local_rank=0", "run", "--limit", "3"])
    ['--limit', '3']

    What may hold a secret is left out:

    >>> options_of_run(["run", "--on-end", "https://host/secret", "--on-end=https://host/secret"])
    ['--on-end', '...', '--on-end=...']
    """
    kept = [word for word in words if not re.match(r"--local[-_]rank(=|$)", word)]
    shown = [
        "..." if before == "--on-end" else "--on-end=..." if word.startswith("--on-end=") else word
        for before, word in zip(["", *kept], kept, strict=False)
    ]
    return shown[1:] if shown[:1] == ["run"] else shown
