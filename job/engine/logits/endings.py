"""Where a completion ends: at an end-of-sequence token, a stop token, a stop string, the end of its grammar, its
token limit, or where it goes round in a loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from job.engine.failures import failed
from job.engine.logits.guide import Guide
from job.engine.logits.loops import is_looping
from job.engine.logits.token_scores import pack_top_tokens, unpack_top_tokens
from job.errors import first_line
from job.records import Generation, Partial, Request, RowError
from job.tasks import EndsText, Generate
from job.tasks.reasoning import Thought

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class End:
    """Why a completion has ended."""

    finish_reason: str | None
    error: RowError | None = None


STOP, LENGTH, REPETITION = End("stop"), End("length"), End("repetition")

NOTHING_LEFT = End(
    None,
    RowError(
        "constraint_failed", "all tokens that could come next are ruled out by --bad-words, --min-new-tokens or both"
    ),
)
"""Of a row whose grammar allows only tokens that its sampling parameters rule out."""


def end_of(
    task: Generate, eos_token_ids: frozenset[int], token_ids: Sequence[int], num_tokens: int, guide: Guide | None
) -> End | None:
    """Return why a completion ends with its latest token, apart from stop strings; None if it goes on.

    Args:
        eos_token_ids: the model's.
        token_ids: prompt and completion, including the latest token.
        num_tokens: how many of them are the completion.
        guide: if the completion has one; it has accepted the latest token.
    """
    params, last_token = task.params, token_ids[-1]
    if guide is not None and guide.failure is not None:
        return End(None, RowError("constraint_failed", guide.failure))
    if last_token in params.eos_of(eos_token_ids) or (guide is not None and guide.has_ended):
        return STOP
    if last_token in params.stop_token_ids and (guide is None or guide.is_answering):
        return STOP
    if params.repetition_detection and is_looping(token_ids, num_tokens, params.repetition_detection):
        return REPETITION
    return LENGTH if num_tokens >= params.max_new_tokens else None


def may_stop(end: End | None) -> bool:
    """Whether it matters if a stop string is complete: it counts more than what cuts a completion."""
    return end in (None, LENGTH, REPETITION)


def text_to_search(task: Generate, completion_ids: list[int], guide: Guide | None) -> list[int]:
    """Return the tokens in which stop strings count: those of the answer, after the first ``min_new_tokens``."""
    answer_ids = completion_ids if guide is None else guide.answer_ids(completion_ids)
    num_before = len(completion_ids) - len(answer_ids)
    num_skipped = max(0, task.params.min_new_tokens - num_before)
    return answer_ids[num_skipped:] if num_skipped else answer_ids


def generation_of(
    request: Request, token_ids: Sequence[int], end: End, logprobs: Sequence[float], tops: bytearray
) -> Generation:
    """Return the result of a completion that has ended.

    Args:
        logprobs: of its tokens, if they were asked for.
        tops: the most likely tokens at each place, packed, if they were asked for.
    """
    if end.error is not None:
        return failed(request, end.error.kind, end.error.detail)
    assert isinstance(request.task, Generate)
    params = request.task.params
    top_ids, top_logprobs = (
        unpack_top_tokens(tops, params.num_top_logprobs) if params.num_top_logprobs else (None, None)
    )
    return Generation(
        request=request,
        token_ids=token_ids,
        finish_reason=end.finish_reason,
        logprobs=logprobs if params.scores_tokens else None,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
    )


def partial_of(generation: Generation) -> Partial | None:
    """Return what a request for more tokens can go on with; None if the completion was not cut by its limit."""
    request, task = generation.request, generation.request.task
    if generation.finish_reason != "length" or not isinstance(task, Generate) or task.ends_at_answer:
        return None
    num_tokens = len(generation.token_ids) - _num_of_closing(task, request.prompt_ids, generation.token_ids)
    if num_tokens == 0:
        return None
    tops = b""
    if generation.top_ids is not None:
        tops = pack_top_tokens(generation.top_ids[:num_tokens], generation.top_logprobs[:num_tokens])
    return Partial(
        row_idx=request.row_idx,
        sample_idx=request.sample_idx,
        attempt=request.attempt,
        token_ids=generation.token_ids[:num_tokens],
        logprobs=(generation.logprobs or ())[:num_tokens],
        tops=tops,
    )


def _num_of_closing(task: Generate, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> int:
    """Return how many tokens at the end of a completion belong to the end of its reasoning, before an answer with a
    grammar.

    Whether they were forced cannot be seen from them, so they are chosen again, with the same result.
    """
    if task.grammar is None or task.reasoning is None:
        return 0
    thought = Thought(task.reasoning, prompt_ids, is_constrained=True)
    for token in token_ids:
        thought.accept(token)
    return len(task.reasoning.closing_ids) - len(thought.closing) if thought.closing else 0


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
