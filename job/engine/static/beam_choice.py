"""Who says how the beams of a batch go on: the leader searches and sends that, the followers use it (law 1).

A place is a line of the batch that the decoder computes: a beam of a row that is still searched for. After each token,
each new place continues an old one, its parent; rows that are done leave the batch.

Letters: P places, N beams, V vocabulary, K candidates of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from job.engine.failures import describe_failure
from job.engine.logits.additions import additions_of
from job.engine.logits.history import TokenHistory
from job.engine.logits.penalties import Penalties
from job.engine.logits.reductions import largest
from job.engine.logits.sampling import SamplingBatch
from job.engine.model.decoder import begin_ids
from job.engine.model.loading import LoadedModel
from job.engine.static.beams import Beam, Candidate, Search
from job.engine.transfers import Parcel
from job.launch.replica import Replica
from job.records import Request
from job.tasks import BeamSearch


@dataclass(frozen=True, slots=True)
class Next:
    """What the decoder computes next."""

    parents: list[int]
    """For each place, the place before that it continues."""
    tokens: list[int]
    """The latest token of each place."""


class Choice:
    """What comes after each token, as the leader sends it. Followers use this class itself."""

    failure: str | None = None
    """Why the leader left, if it was not asked to stop."""

    def __init__(self, replica: Replica, num_rows: int, num_beams: int) -> None:
        """Receive it through the replica's broadcasts.

        Args:
            num_rows: rows of the batch.
        """
        self._replica, self._num_places = replica, num_rows * num_beams

    def __call__(self, logits: torch.Tensor) -> Next | None:
        """Return what comes next; None if the batch is over.

        Args:
            logits: [P, V], of the latest tokens, in the model's dtype.
        """
        message = torch.full((2, self._num_places), -1, dtype=torch.int64)
        self.write(logits, message)
        parents, tokens = self._replica.broadcast_tensor(message.to(logits.device)).tolist()
        num_places = sum(parent >= 0 for parent in parents)
        return Next(parents[:num_places], tokens[:num_places]) if num_places else None

    def write(self, logits: torch.Tensor, message: torch.Tensor) -> None:
        """Write parents and tokens to the beginning of a message [2, most places] int64. Followers write nothing."""


class LeadingChoice(Choice):
    """Searches for the completions of a batch."""

    def __init__(
        self, replica: Replica, model: LoadedModel, requests: Sequence[Request], should_stop: Callable[[], bool]
    ) -> None:
        """Search for the completions of requests, whose tasks are ``BeamSearch`` with one number of beams.

        Args:
            should_stop: called before every token.
        """
        assert model.decoder is not None, "the run is refused for other models"
        tasks = [task_of(request) for request in requests]
        self._num_beams = tasks[0].num_beams
        assert {task.num_beams for task in tasks} == {self._num_beams}, "a run has one number of beams"
        super().__init__(replica, len(requests), self._num_beams)
        self.requests, self._should_stop = requests, should_stop
        self._decoder, self._eos_token_ids = model.decoder, frozenset(model.eos_token_ids)
        self.searches = [self._search(request) for request in requests]
        self.non_finite: set[int] = set()
        self._going = list(range(len(requests)))
        """Rows that are still searched for, in the order of their places."""
        self._history = TokenHistory(self._num_places)

    def _search(self, request: Request) -> Search:
        task, decoder = task_of(request), self._decoder
        ends = task.params.eos_of(self._eos_token_ids)
        return Search(
            task,
            begin_ids(decoder, request.decoder_ids),
            ends.union(task.params.stop_token_ids),
            forces_end=decoder.forced_eos_id is not None and not task.params.ignore_eos,
        )

    def write(self, logits: torch.Tensor, message: torch.Tensor) -> None:
        """See ``Choice``."""
        if self._should_stop():
            return
        # Whatever goes wrong here, the followers are waiting in the broadcast and must receive something.
        try:
            following = self._advance(logits)
        except Exception as error:
            self.failure = describe_failure(error)
            return
        message[0, : len(following.parents)] = torch.tensor(following.parents, dtype=torch.int64)
        message[1, : len(following.tokens)] = torch.tensor(following.tokens, dtype=torch.int64)

    def _advance(self, logits: torch.Tensor) -> Next:
        """Choose the next token of all beams."""
        before, per_row = self._going, len(logits) // len(self._going)
        candidates = self._candidates(logits)
        for idx, row in enumerate(before):
            if row not in self.non_finite:
                self.searches[row].advance(candidates[idx])
        goes_on = [idx for idx, row in enumerate(before) if row not in self.non_finite and self.searches[row].is_open]
        self._going = [before[idx] for idx in goes_on]
        beams = [(idx, beam) for idx in goes_on for beam in self.searches[before[idx]].beams]
        return Next([idx * per_row + beam.parent for idx, beam in beams], [beam.token_ids[-1] for _, beam in beams])

    def _candidates(self, logits: torch.Tensor) -> list[list[Candidate]]:
        """Return the candidates of each row for the next token, the best first; and find what is not finite."""
        num_rows, vocab_size = len(self._going), logits.shape[1]
        beams = [beam for row in self._going for beam in self.searches[row].beams]
        is_finite = largest(logits)[0].isfinite().view(num_rows, -1).all(-1)
        so_far = torch.from_numpy(np.array([beam.score for beam in beams], np.float32)).to(logits.device)
        scores = (self._scores(logits, beams) + so_far[:, None]).view(num_rows, -1)
        num_wanted = min(max(self.searches[row].num_candidates for row in self._going), scores.shape[1])
        best, places = scores.topk(num_wanted)
        self.non_finite |= {row for row, ok in zip(self._going, is_finite.tolist(), strict=True) if not ok}
        return [
            [
                Candidate(beam=place // vocab_size, token=place % vocab_size, score=score)
                for score, place in zip(of_row, own, strict=True)
            ]
            for of_row, own in zip(best.cpu().numpy(), places.tolist(), strict=True)
        ]

    def _scores(self, logits: torch.Tensor, beams: Sequence[Beam]) -> torch.Tensor:
        """Return the log probabilities [P, V] float32 of the next tokens, after penalties; -inf: impossible."""
        per_row, vocab_size = len(beams) // len(self._going), logits.shape[1]
        rows = [row for row in self._going for _ in range(per_row)]
        batch = SamplingBatch(
            params=[self.searches[row].task.params for row in rows],
            keys=[self.requests[row].key for row in rows],
            positions=[self.searches[row].num_generated for row in rows],
            eos_token_ids=self._eos_token_ids,
        )
        for place, beam in enumerate(beams):
            beam.slot = place
        parcel = Parcel(logits.device)
        additions = additions_of(batch, beams, vocab_size)
        sent = None if additions is None else additions.send(parcel)
        penalties = Penalties(batch, self._history.of(beams), vocab_size, parcel)
        scores = logits.float().log_softmax(-1)
        if sent is not None:
            scores, is_possible = sent.apply(scores)
            scores = scores.masked_fill(~is_possible[:, None], -torch.inf)
        scores = penalties(scores)
        if self._decoder.never_ids:
            scores[:, list(self._decoder.never_ids)] = -torch.inf
        forced = [
            idx for idx, row in enumerate(rows) if self.searches[row].forces_end and self.searches[row].is_at_limit
        ]
        if forced:
            scores[forced] = -torch.inf
            scores[forced, self._decoder.forced_eos_id] = 0.0
        return scores


def task_of(request: Request) -> BeamSearch:
    """Return the task of a request, which is to search."""
    assert isinstance(request.task, BeamSearch), "a batch has one kind of task"
    return request.task
