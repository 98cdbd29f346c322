"""Chooses tokens inside transformers' ``generate``: the leader chooses and sends them, the followers use them.

On every rank, ``generate`` runs greedily on logits in which a chooser has left only one token possible: the one that
the leader broadcast. So ranks cannot drift apart, even if the last bits of their logits differ. With the tokens, the
leader sends whether it leaves the batch after them, so all ranks stop after the same step.

Letters: B rows of the batch, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

from job.engine.failures import describe_failure
from job.engine.logits.constraint import Constraints
from job.engine.logits.endings import LENGTH, NOTHING_LEFT, STOP, End, end_of, find_stops, may_stop, text_to_search
from job.engine.logits.guide import Guide, guides
from job.engine.logits.history import TokenHistory
from job.engine.logits.pipeline import TokenChoice, choose
from job.engine.logits.sampling import SamplingBatch
from job.engine.model.decoder import begin_ids
from job.engine.model.loading import LoadedModel
from job.launch.replica import Replica
from job.records import Partial, Request
from job.tasks import Generate

NEVER = -1e9
"""The logit of a token that is never written. Not infinite: that would count as an overflow."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the batch. Its list of tokens grows."""

    slot: int
    token_ids: list[int]
    """Prompt, or what an encoder-decoder's decoder begins with, and completion so far."""
    num_prompt: int

    @property
    def num_generated(self) -> int:
        """The number of tokens in the completion so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def completion_ids(self) -> list[int]:
        """The completion so far."""
        return self.token_ids[self.num_prompt :]


class Chooser(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token per row possible: the one that the leader chose. Followers use this class itself."""

    failure: str | None = None
    """Why the leader left, if it was not asked to stop."""

    def __init__(self, replica: Replica) -> None:
        """Receive tokens through the replica's broadcasts."""
        self._replica = replica
        self.has_left = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Leave only the leader's tokens possible.

        Args:
            input_ids: what ``generate`` has computed so far. Not used: the leader keeps the tokens of its rows itself.
            scores: [B, V] float32.

        Returns:
            [B, V] float32: 0 at the chosen token, -inf elsewhere.
        """
        message = self._replica.broadcast_tensor(self.message(scores))
        self.has_left = bool(message[-1])
        return torch.full_like(scores, -torch.inf).scatter_(-1, message[:-1, None], 0.0)

    def message(self, scores: torch.Tensor) -> torch.Tensor:
        """Return [B + 1] int64: space for the leader's tokens, and for whether it leaves."""
        return torch.empty(len(scores) + 1, dtype=torch.int64, device=scores.device)


class LeadingChooser(Chooser):
    """Chooses the tokens of a batch and remembers them. A row that has ended gets padding."""

    def __init__(
        self,
        replica: Replica,
        model: LoadedModel,
        requests: Sequence[Request],
        constraints: Constraints,
        should_stop: Callable[[], bool],
    ) -> None:
        """Choose for a batch.

        Args:
            requests: one per row; the task of each is ``Generate``.
            should_stop: called before every token.
        """
        super().__init__(replica)
        self.requests, self._should_stop, self._constraints = requests, should_stop, constraints
        self._pad_token_id, self._eos_token_ids = model.pad_token_id, frozenset(model.eos_token_ids)
        self._tasks = [_task_of(request) for request in requests]
        self._going = list(range(len(requests)))
        """Rows that have not ended."""
        self._guides = {
            row: Guide(task, requests[row].prompt_ids, task.params.eos_of(self._eos_token_ids), constraints)
            for row, task in enumerate(self._tasks)
            if guides(task)
        }
        before = [list(begin_ids(model.decoder, request.decoder_ids) or request.prompt_ids) for request in requests]
        begun = [request.begun if model.decoder is None else None for request in requests]
        self.rows = [
            Row(row, [*ids, *(part.token_ids if part else ())], len(ids))
            for row, (ids, part) in enumerate(zip(before, begun, strict=True))
        ]
        for row, guide in self._guides.items():
            guide.go_through(self.rows[row].completion_ids)
        self._never_ids = () if model.decoder is None else model.decoder.never_ids
        self._forced_eos_id = None if model.decoder is None else model.decoder.forced_eos_id
        self._history = TokenHistory(len(requests))
        self.logprobs: list[list[float]] = [list(part.logprobs) if part else [] for part in begun]
        """Log probabilities of the tokens, for each row that asks for them."""
        self.tops = [bytearray(part.tops) if part else bytearray() for part in begun]
        """The most likely tokens at each place, packed, for each row that asks for them."""
        self.ends: dict[int, End] = {}
        self.non_finite: set[int] = set()
        self._expect_masks()

    def unfinished(self) -> list[Partial]:
        """Return what the rows have that have not ended, apart from those whose reasoning is being closed: that has to
        be done to its end."""
        guides = ((row, self._guides.get(row)) for row in self._going)
        return [
            Partial(
                row_idx=self.requests[row].row_idx,
                sample_idx=self.requests[row].sample_idx,
                attempt=self.requests[row].attempt,
                token_ids=self.rows[row].completion_ids,
                logprobs=self.logprobs[row],
                tops=self.tops[row],
            )
            for row, guide in guides
            if guide is None or not guide.is_closing
        ]

    def message(self, scores: torch.Tensor) -> torch.Tensor:
        """Return [B + 1] int64: the chosen tokens, and whether the leader leaves after them."""
        tokens = [self._pad_token_id] * len(scores)
        leaves = self._should_stop()
        if not leaves:
            # Whatever goes wrong here, the followers are waiting in the broadcast and must receive something.
            try:
                for row, token in self._step(scores).items():
                    tokens[row] = token
            except Exception as error:
                self.failure = describe_failure(error)
            # generate does not know what ends our rows: it would continue a batch that has ended to max_new_tokens.
            leaves = self.failure is not None or not self._going
        return torch.tensor([*tokens, leaves], dtype=torch.int64, device=scores.device)

    def _step(self, scores: torch.Tensor) -> dict[int, int]:
        """Choose tokens for the rows that go on, and record which of them end."""
        rows = self._going
        choice = self._choose(scores)
        if self._is_closed_before(choice):
            self._expect_masks()
            choice = self._choose(scores)
        chosen = dict(zip(rows, choice.tokens, strict=True))
        self.non_finite |= {row for row, is_finite in zip(rows, choice.is_finite, strict=True) if not is_finite}
        finite = [row for row in rows if row not in self.non_finite]
        left_out = {row for row, is_possible in zip(rows, choice.is_possible, strict=True) if not is_possible}
        self.ends |= dict.fromkeys(left_out.difference(self.non_finite), NOTHING_LEFT)
        for idx, (row, logprob) in enumerate(zip(rows, choice.logprobs, strict=True)):
            self.rows[row].token_ids.append(chosen[row])
            if choice.tops:
                self.tops[row] += choice.tops[idx]
            if logprob is not None:
                self.logprobs[row].append(logprob)
        self._find_ends([row for row in finite if row not in self.ends])
        self._going = [row for row in finite if row not in self.ends]
        self._expect_masks()
        return chosen

    def _choose(self, scores: torch.Tensor) -> TokenChoice:
        rows = self._going
        batch = SamplingBatch(
            params=[self._tasks[row].params for row in rows],
            keys=[self.requests[row].key for row in rows],
            positions=[self.rows[row].num_generated for row in rows],
            eos_token_ids=self._eos_token_ids,
        )
        if len(rows) < len(scores):
            scores = scores.index_select(0, torch.tensor(rows, device=scores.device))
        if self._never_ids:
            never_ids = torch.tensor(self._never_ids, device=scores.device)
            scores = scores.index_fill(-1, never_ids, NEVER)
        if forced := [idx for idx, row in enumerate(rows) if self._must_end(row, self.rows[row].num_generated + 1)]:
            scores = scores.clone()
            scores[forced] = NEVER
            scores[forced, self._forced_eos_id] = 0.0
        occurred = self._history.of([self.rows[row] for row in rows])
        return choose(scores, batch, occurred, self._constraints.masks())

    def _must_end(self, row: int, num_tokens: int) -> bool:
        """Whether the model's files force the end, as some do at the limit of a row."""
        params = self._tasks[row].params
        may_force = self._forced_eos_id is not None and row not in self._guides and not params.ignore_eos
        return may_force and num_tokens == params.max_new_tokens

    def _is_closed_before(self, choice: TokenChoice) -> bool:
        """Let all guides see what was chosen, and return whether one of them forces something else."""
        chosen = zip(self._going, choice.tokens, strict=True)
        closed = [self._guides[row].closes_before(token) for row, token in chosen if row in self._guides]
        return any(closed)

    def _find_ends(self, rows: Sequence[int]) -> None:
        """Record the rows that end with their latest token."""
        texts = {}
        for row in rows:
            task, tokens, guide = self._tasks[row], self.rows[row], self._guides.get(row)
            last = tokens.token_ids[-1]
            if guide is not None:
                guide.accept(last)
            end = end_of(task, self._eos_token_ids, tokens.token_ids, tokens.num_generated, guide)
            if end is STOP and self._must_end(row, tokens.num_generated):
                end = LENGTH
            if end is not None:
                self.ends[row] = end
            if may_stop(end) and task.ends_text is not None:
                text_ids = text_to_search(task, tokens.completion_ids, guide)
                if text_ids:
                    texts[row] = (task.ends_text, text_ids)
        self.ends |= find_stops(texts)

    def _expect_masks(self) -> None:
        going = ((idx, self._guides[row].allowed()) for idx, row in enumerate(self._going) if row in self._guides)
        self._constraints.expect({idx: tokens for idx, tokens in going if tokens is not None})


def _task_of(request: Request) -> Generate:
    assert isinstance(request.task, Generate), "a batch has one kind of task"
    return request.task


class HasLeft(StoppingCriteria):  # type: ignore[misc]
    """Ends a batch that the leader has left."""

    def __init__(self, chooser: Chooser) -> None:
        """Watch a chooser."""
        self._chooser = chooser

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return [B] bool: True for rows that are done."""
        return torch.full((len(input_ids),), self._chooser.has_left, dtype=torch.bool, device=input_ids.device)
