"""Where a completion ends: at an end-of-sequence token, a stop string, the end of its grammar, or its token limit."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from job.engine.logits.guide import Guide
from job.errors import first_line
from job.records import RowError
from job.tasks import EndsText, Generate

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class End:
    """Why a completion has ended."""

    finish_reason: str | None
    error: RowError | None = None


STOP, LENGTH = End("stop"), End("length")


def end_of(
    task: Generate, eos_token_ids: Collection[int], last_token: int, num_tokens: int, guide: Guide | None
) -> End | None:
    """Return why a completion ends with its latest token, apart from stop strings; None if it goes on.

    Args:
        num_tokens: in the completion, including the latest.
        guide: if the completion has one; it has accepted the latest token.
    """
    if guide is not None and guide.failure is not None:
        return End(None, RowError("constraint_failed", guide.failure))
    if last_token in eos_token_ids or (guide is not None and guide.has_ended):
        return STOP
    return LENGTH if num_tokens >= task.params.max_new_tokens else None


def find_stops(completions: Mapping[Row, tuple[EndsText, list[int]]]) -> dict[Row, End]:
    """Return the completions that a stop string has ended.

    Looking for stop strings decodes the tokens, and the tokenizer may raise an exception on some of them: then that
    row ends with an error, and no other row does.
    """
    ends: dict[Row, End] = {}
    groups: dict[EndsText, dict[Row, list[int]]] = {}
    for row, (ends_text, ids) in completions.items():
        groups.setdefault(ends_text, {})[row] = ids
    for ends_text, texts in groups.items():
        try:
            stopped = ends_text(list(texts.values()))
            ends |= {row: STOP for row, has_stopped in zip(texts, stopped, strict=True) if has_stopped}
        except Exception as error:  # whatever the tokenizer raises
            if len(texts) == 1:
                detail = f"looking for stop strings: {type(error).__name__}: {first_line(error)}"
                ends |= dict.fromkeys(texts, End(None, RowError("engine_error", detail)))
            else:
                for row, ids in texts.items():
                    ends |= find_stops({row: (ends_text, ids)})
    return ends
