"""What llguidance needs of a tokenizer, and its reasons as one line."""

import functools
from typing import Any

from job.errors import UsageError

MAX_REASON_CHARACTERS = 400


@functools.lru_cache(2)
def readable_tokenizer(tokenizer: Any, option: str, *, is_json: bool) -> Any:
    """Return llguidance's view of a tokenizer. It takes a while to make, and rows may bring many schemas."""
    from llguidance import LLTokenizer
    from llguidance.hf import from_tokenizer

    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        lacking = "a fast tokenizer" if not tokenizer.is_fast else "an end-of-sequence token"
        raise UsageError(f"{option} needs {lacking}; this model has none.")
    slices = LLTokenizer.json_slices() if is_json else LLTokenizer.general_slices()
    try:
        return from_tokenizer(tokenizer, slices=slices)
    except Exception as error:  # llguidance lets its parts' exceptions of any type through
        raise UsageError(f"{option}: llguidance cannot read this model's tokenizer: {one_line(str(error))}") from None


def one_line(text: str) -> str:
    """Return llguidance's reason, without the source excerpts that it prints on separate lines.

    >>> one_line('at 1(8): invalid regex "(" (in regex): regex parse error:\\n    (\\n    ^\\nerror: unclosed group')
    'regex parse error: error: unclosed group'
    >>> one_line("regex parse error:\\n    (?=x)\\n    ^^^\\nerror: no look-around.")
    'regex parse error: error: no look-around'
    """
    text = text.partition("<state>")[0]  # llguidance's internal state follows
    line = " ".join(line.strip() for line in text.splitlines() if line[:1].strip())
    line = line.partition("(in regex): ")[2] or line
    line = line.rstrip(".")
    return line if len(line) <= MAX_REASON_CHARACTERS else line[:MAX_REASON_CHARACTERS] + " ..."
