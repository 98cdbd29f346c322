"""Decoding: a step's logits become the next token of each row, until it ends."""

from collections import abc

import torch

from job.engine.logits.constraint import Constraints
from job.engine.logits.endings import NOTHING_LEFT, End, end_of, find_stops, generation_of, may_stop, text_to_search
from job.engine.logits.guide import Guide, guides
from job.engine.logits.history import TokenHistory
from job.engine.logits.loops import EVERY_TOKENS
from job.engine.logits.pipeline import PendingChoice, TokenChoice, start_choice
from job.engine.logits.sampling import SamplingBatch
from job.engine.model.loading import LoadedModel
from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.schedule.work import Work
from job.engine.paged.tasks.logits_task import Outcome
from job.records import Generation, Partial, Request
from job.tasks import EndsText, Generate


class Decoding:
    """Implements ``LogitsTask`` for ``Generate``."""

    def __init__(self, model: LoadedModel, *, num_slots: int) -> None:
        """Start without rows.

        Args:
            model: its end-of-sequence tokens end a completion, unless its task ignores them.
            num_slots: the engine's number of slots.
        """
        self._eos_token_ids = frozenset(model.eos_token_ids)
        self._may_end = set(self._eos_token_ids)
        """All tokens that end any row."""
        self._finds_loops = False
        """Whether any row may end in a loop."""
        self._constraints = Constraints()
        self._guides: dict[Sequence, Guide | None] = {}
        """Of all rows that have one; None until it is first needed."""
        self._history = TokenHistory(num_slots)
        self._wide: set[Sequence] = set()
        """Rows for which a token was not exact, see ``SamplingBatch.wide``; they stay wide, or it would happen again
        and again."""

    def begin(self, request: Request) -> list[Sequence]:
        """See ``LogitsTask``."""
        row = Sequence.of(request)
        params = _task_of(row).params
        if request.begun is not None:
            row.token_ids += request.begun.token_ids
            row.logprobs += request.begun.logprobs
            row.tops += request.begun.tops
        row.max_length = row.num_prompt + params.max_new_tokens
        self._may_end.update(params.stop_token_ids)
        self._finds_loops |= params.repetition_detection > 0
        if guides(_task_of(row)):
            self._guides[row] = None
        return [row]

    def expect(self, work: abc.Sequence[Work]) -> None:
        """See ``LogitsTask``."""
        rows = enumerate(item.sequence for item in work) if self._guides else ()
        allowed = ((idx, self._guide(row).allowed()) for idx, row in rows if row in self._guides)
        self._constraints.expect({idx: tokens for idx, tokens in allowed if tokens is not None})

    def start(self, work: abc.Sequence[Work], logits: torch.Tensor) -> PendingChoice:
        """See ``LogitsTask``."""
        rows = [item.sequence for item in work]
        batch = SamplingBatch(
            params=[_task_of(row).params for row in rows],
            keys=[row.request.key for row in rows],
            positions=[row.num_generated for row in rows],
            wide=[idx for idx, row in enumerate(rows) if row in self._wide] if self._wide else (),
            eos_token_ids=self._eos_token_ids,
        )
        return start_choice(logits, batch, self._history.of(rows), self._constraints.masks())

    def take(self, work: abc.Sequence[Work], result: TokenChoice) -> Outcome:
        """See ``LogitsTask``."""
        rows = [item.sequence for item in work]
        non_finite = [row for row, is_finite in zip(rows, result.is_finite, strict=True) if not is_finite]
        inexact = [row for row, is_exact in zip(rows, result.is_exact, strict=True) if not is_exact]
        self._wide.update(inexact)
        unusable = {*non_finite, *inexact}
        ends: dict[Sequence, End] = {}
        texts: dict[Sequence, tuple[EndsText, list[int]]] = {}
        choices = zip(rows, result.tokens, result.logprobs, result.is_possible, strict=True)
        for idx, (row, token, logprob, is_possible) in enumerate(choices):
            if unusable and row in unusable:
                continue
            guide = self._guides.get(row) if self._guides else None
            if guide is not None and guide.closes_before(token):
                inexact.append(row)
                continue
            if result.tops:
                row.tops += result.tops[idx]
            end = self._append(row, token, logprob) if is_possible else NOTHING_LEFT
            if end is not None:
                ends[row] = end
            ends_text = _task_of(row).ends_text if may_stop(end) else None
            if ends_text is not None and (text_ids := self._text_to_search(row)):
                texts[row] = (ends_text, text_ids)
        ends |= find_stops(texts)
        for row in ends:
            self._forget(row)
        return Outcome(
            ended=list(ends),
            non_finite=non_finite,
            inexact=inexact,
            generations=[
                generation_of(row.request, row.completion_ids, end, row.logprobs, row.tops) for row, end in ends.items()
            ],
        )

    def partial(self, sequence: Sequence, start: int) -> Partial | None:
        """See ``LogitsTask``. Nothing is returned while reasoning is closed: that has to be done to its end."""
        guide, num_tokens = self._guides.get(sequence), sequence.num_generated
        if num_tokens <= start or (guide is not None and guide.is_closing):
            return None
        request = sequence.request
        return Partial(
            row_idx=request.row_idx,
            sample_idx=request.sample_idx,
            attempt=request.attempt,
            start=start,
            token_ids=sequence.token_ids[sequence.num_prompt + start :],
            logprobs=sequence.logprobs[start:],
            tops=bytes(sequence.tops[len(sequence.tops) // num_tokens * start :]),
        )

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """See ``LogitsTask``."""
        self._forget(sequence)
        return [failure]

    def _guide(self, row: Sequence) -> Guide:
        """Return the guide of a row that has one."""
        guide, task = self._guides[row], _task_of(row)
        if guide is None:
            eos_token_ids = task.params.eos_of(self._eos_token_ids)
            guide = Guide(task, row.request.prompt_ids, eos_token_ids, self._constraints)
            guide.go_through(row.completion_ids)  # those of an earlier process
            self._guides[row] = guide
        return guide

    def _text_to_search(self, row: Sequence) -> list[int]:
        return text_to_search(_task_of(row), row.completion_ids, self._guides.get(row))

    def _forget(self, row: Sequence) -> None:
        self._guides.pop(row, None)
        self._wide.discard(row)

    def _append(self, row: Sequence, token: int, logprob: float | None) -> End | None:
        """Append a token to a row, and the tokens that must follow it; return why the row ends, if it does."""
        row.token_ids.append(token)
        if logprob is not None:
            row.logprobs.append(logprob)
        guide = self._guides.get(row) if self._guides else None
        may_loop = self._finds_loops and row.num_generated % EVERY_TOKENS == 0
        if guide is None and token not in self._may_end and len(row.token_ids) != row.max_length and not may_loop:
            return None  # the usual case
        task = _task_of(row)
        if guide is not None:
            guide.accept(token)
            if not task.params.needs_steps:
                row.token_ids += guide.take_forced(task.params.max_new_tokens - row.num_generated)
        return end_of(task, self._eos_token_ids, row.token_ids, row.num_generated, guide)


def _task_of(row: Sequence) -> Generate:
    assert isinstance(row.request.task, Generate)
    return row.request.task
