"""Texts that are taken as typed, but look as if something else was meant. Notes only: each of them may be meant."""

import re
import shlex
from collections.abc import Iterator, Sequence

from job.config import PromptConfig, SamplingConfig
from job.errors import shorten

BRACES = re.compile(r"\{+\s*([^{}]+?)\s*\}+")
ESCAPE = re.compile(r"(?<!\\)\\n")
"""A backslash and an n: bash leaves it as it is, also in double quotes."""


def notes_on_texts(prompt: PromptConfig, sampling: SamplingConfig, columns: Sequence[str]) -> Iterator[str]:
    """Yield notes about a column in the system message, words that may be several, and line breaks that are none."""
    named = [name for name in BRACES.findall(prompt.system_prompt or "") if name in columns]
    if named:
        yield f"--system-prompt is not a template: {named[0]} in braces stays as typed; use --prompt-template for it"
    if (prompt.prefill or "").endswith(" "):
        yield (
            "--prefill ends with a space, which most models write as the beginning of the next word: they continue a "
            "text without it better"
        )
    for word in sampling.bad_words:
        parts = [part.strip() for part in word.split(",")]
        if len(parts) > 1 and all(any(map(str.isalpha, part)) for part in parts):
            several = " ".join(f"--bad-words {shlex.quote(part)}" for part in parts)
            yield f"--bad-words {shlex.quote(shorten(word))} is one text, comma included; for several, write {several}"
    options = (
        ("--prompt-template", [prompt.prompt_template or ""]),
        ("--system-prompt", [prompt.system_prompt or ""]),
        ("--prefill", [prompt.prefill or ""]),
        ("--stop", sampling.stop),
    )
    for option, texts in options:
        if found := [text for text in texts if ESCAPE.search(text)]:
            yield (
                f"{option} has a backslash and an n, which is not a line break: {shorten(found[0], 60)}; for a line "
                "break in bash, write $'...\\n...'"
            )
