"""Few-shot examples: rows with their answers, which stand before every row's own prompt.

A file of JSON lines; each line is an object with the columns that a prompt needs and ``completion``, the answer. The
examples are the same for all rows, so an engine that shares the beginnings of prompts computes them once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from job.errors import UsageError

Turns = list[dict[str, Any]]
"""Messages of a conversation: {role, content}."""

FORM = 'Each line is a JSON object with the prompt\'s columns and "completion", the answer.'


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One line of the file."""

    line: int
    """Its number, from 1."""
    values: Mapping[str, Any]
    """All that it holds, the answer included."""

    @property
    def completion(self) -> str:
        """The answer."""
        return str(self.values["completion"])


def parse_examples(text: str) -> tuple[Example, ...]:
    """Return the examples of a text. Blank lines are none.

    Raises:
        UsageError: a line is no example, or there is none; the message gives the line's number.
    """
    lines = enumerate(text.split("\n"), start=1)  # not splitlines: JSON allows other separators within a string
    examples = tuple(Example(line=number, values=_parse(line, number)) for number, line in lines if line.strip())
    if not examples:
        raise UsageError(f"--examples: there is no example in the file. {FORM}")
    return examples


def _parse(line: str, number: int) -> Mapping[str, Any]:
    try:
        values = json.loads(line.strip())
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--examples, line {number}: it holds a lone surrogate, which is no character.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--examples, line {number}: it is not JSON: {error}. {FORM}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--examples, line {number}: it is not an object. {FORM}")
    if "completion" not in values:
        raise UsageError(f"--examples, line {number}: it has no 'completion'. {FORM}")
    completion = values["completion"]
    if not isinstance(completion, str) or not completion.strip():
        raise UsageError(f"--examples, line {number}: completion is {json.dumps(completion)}; it must be a text.")
    return values


def conversation_of(shots: Sequence[tuple[str | Turns, str]]) -> Turns:
    """Return examples as earlier turns: what the user said, and what the assistant answered.

    Args:
        shots: prompts, as texts or as messages, and their answers.
    """
    turns: Turns = []
    for prompt, completion in shots:
        turns += [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns.append({"role": "assistant", "content": completion})
    return turns


def text_of(shots: Sequence[tuple[str | Turns, str]]) -> str:
    """Return examples as a text, joined as they are: whoever wants a space before the answer writes it.

    >>> text_of([("1 + 1 =", " 2"), ("2 + 2 =", " 4")])
    '1 + 1 = 2\\n\\n2 + 2 = 4\\n\\n'
    """
    return "".join(f"{prompt}{completion}\n\n" for prompt, completion in shots)


def insert_turns(turns: Turns, messages: Turns) -> Turns:
    """Put earlier turns before messages, but behind a system message that begins them.

    >>> insert_turns([{"role": "user"}, {"role": "assistant"}], [{"role": "system"}, {"role": "user"}])
    [{'role': 'system'}, {'role': 'user'}, {'role': 'assistant'}, {'role': 'user'}]
    """
    num_leading = next((idx for idx, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return [*messages[:num_leading], *turns, *messages[num_leading:]]
