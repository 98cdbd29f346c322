"""Few-shot examples: rows with their answers, which come before the prompt of every row.

They are read from a JSON lines file: each line is an object with the columns that a prompt needs and ``completion``,
the answer. The examples are the same for all rows, so an engine with a prefix cache computes them once.
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
    """The line number, from 1."""
    values: Mapping[str, Any]
    """All values of the line, including the answer."""

    @property
    def completion(self) -> str:
        """The answer."""
        return str(self.values["completion"])


def parse_examples(text: str) -> tuple[Example, ...]:
    """Parse the text of an examples file. Blank lines are skipped.

    Raises:
        UsageError: a line is not an example (the message gives its number), or there are no examples.
    """
    lines = enumerate(text.split("\n"), start=1)  # not splitlines: a JSON string may contain other line separators
    examples = tuple(Example(line=number, values=_parse(line, number)) for number, line in lines if line.strip())
    if not examples:
        raise UsageError(f"--examples: the file contains no examples. {FORM}")
    return examples


def _parse(line: str, number: int) -> Mapping[str, Any]:
    try:
        values = json.loads(line.strip())
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--examples, line {number}: it contains a lone surrogate. Remove it.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--examples, line {number}: it is not JSON: {error}. {FORM}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--examples, line {number}: it is not an object. {FORM}")
    if "completion" not in values:
        raise UsageError(f"--examples, line {number}: it has no 'completion'. {FORM}")
    completion = values["completion"]
    if not isinstance(completion, str) or not completion.strip():
        raise UsageError(
            f"--examples, line {number}: completion is {json.dumps(completion)}; it must be non-blank text."
        )
    return values


def conversation_of(shots: Sequence[tuple[str | Turns, str]]) -> Turns:
    """Return examples as earlier turns: a user message and the assistant's answer for each.

    Args:
        shots: pairs of a prompt, as text or as messages, and its answer.
    """
    turns: Turns = []
    for prompt, completion in shots:
        turns += [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns.append({"role": "assistant", "content": completion})
    return turns


def text_of(shots: Sequence[tuple[str | Turns, str]]) -> str:
    """Return examples as one text. Nothing is put between a prompt and its answer, not even a space.

    >>> text_of([("1 + 1 =", " 2"), ("2 + 2 =", " 4")])
    '1 + 1 = 2\\n\\n2 + 2 = 4\\n\\n'
    """
    return "".join(f"{prompt}{completion}\n\n" for prompt, completion in shots)


def insert_turns(turns: Turns, messages: Turns) -> Turns:
    """Insert earlier turns before the messages, but after leading system messages.

    >>> insert_turns([{"role": "user"}, {"role": "assistant"}], [{"role": "system"}, {"role": "user"}])
    [{'role': 'system'}, {'role': 'user'}, {'role': 'assistant'}, {'role': 'user'}]
    """
    num_leading = next((idx for idx, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return [*messages[:num_leading], *turns, *messages[num_leading:]]
