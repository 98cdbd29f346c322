"""Scoring: a step's logits become log-likelihoods of choices. No token is generated.

The branches of a request (see ``ChoiceTrie``) are sequences that share the pages of its prompt.
"""

from collections import abc
from dataclasses import dataclass

import numpy as np
import torch

from job.engine.logits.trie import Branch, ChoiceTrie, Floats, PendingScores, start_scores, trie_of
from job.engine.model.loading import LoadedModel
from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.schedule.work import Work
from job.engine.paged.tasks.logits_task import Outcome
from job.records import Generation, Request, SampleKey
from job.tasks import Score


@dataclass(slots=True)
class Scored:
    """A request and the scores of its choices so far. Changes until no branch is left."""

    trie: ChoiceTrie
    edge_logprobs: Floats
    num_branches_left: int
    failure: Generation | None = None


class Scoring:
    """Implements ``LogitsTask`` for ``Score``."""

    def __init__(self, model: LoadedModel, *, num_slots: int) -> None:
        """Start without requests; each brings its choices."""
        self._scored: dict[SampleKey, Scored] = {}
        self._branches: dict[Sequence, Branch] = {}

    def begin(self, request: Request) -> list[Sequence]:
        """See ``LogitsTask``."""
        assert isinstance(request.task, Score)
        trie = trie_of(request.task.choice_ids)
        self._scored[request.key] = Scored(trie, np.full(trie.num_edges, np.nan), len(trie.branches))
        rows = []
        for branch in trie.branches:
            row = Sequence(
                request,
                [*request.prompt_ids, *branch.token_ids],
                num_forced=len(branch.token_ids),
                wanted_from=len(request.prompt_ids) - 1 + branch.num_known,
            )
            self._branches[row] = branch
            rows.append(row)
        return rows

    def expect(self, work: abc.Sequence[Work]) -> None:
        """See ``LogitsTask``."""

    def start(self, work: abc.Sequence[Work], logits: torch.Tensor) -> PendingScores:
        """See ``LogitsTask``."""
        return start_scores(logits, [(self._scored[row.request.key].trie, node) for row, node in self._wanted(work)])

    def take(self, work: abc.Sequence[Work], result: tuple[list[Floats], list[bool]]) -> Outcome:
        """See ``LogitsTask``."""
        logprobs, is_finite = result
        wanted = self._wanted(work)
        non_finite = list({row: None for (row, _), finite in zip(wanted, is_finite, strict=True) if not finite})
        for (row, node), values in zip(wanted, logprobs, strict=True):
            if row not in non_finite:
                scored = self._scored[row.request.key]
                scored.edge_logprobs[scored.trie.edges(node)] = values
        ended = [w.sequence for w in work if w.end == len(w.sequence.token_ids) and w.sequence not in non_finite]
        generations = [generation for row in ended for generation in self._leave(row)]
        return Outcome(ended=ended, non_finite=non_finite, generations=generations)

    def partial(self, sequence: Sequence, start: int) -> None:
        """See ``LogitsTask``. Nothing is generated."""

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """See ``LogitsTask``. The request is finished when its other branches are."""
        self._scored[sequence.request.key].failure = failure
        return self._leave(sequence)

    def _wanted(self, work: abc.Sequence[Work]) -> list[tuple[Sequence, int]]:
        """Return the nodes whose logits a step gives, each with its sequence."""
        return [(item.sequence, node) for item in work for node in self._nodes(item)]

    def _nodes(self, item: Work) -> tuple[int, ...]:
        """Return the nodes of a sequence whose logits a step gives."""
        begin = item.end - item.num_wanted - item.sequence.first_wanted
        return self._branches[item.sequence].nodes[begin:][: item.num_wanted]

    def _leave(self, row: Sequence) -> list[Generation]:
        """Count one branch less, and return the result of its request if it was the last."""
        del self._branches[row]
        scored = self._scored[row.request.key]
        scored.num_branches_left -= 1
        if scored.num_branches_left:
            return []
        del self._scored[row.request.key]
        return [scored.failure or scored.trie.generation(row.request, scored.edge_logprobs)]
