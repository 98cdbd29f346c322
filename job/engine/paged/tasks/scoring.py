"""Scoring: a step's logits become log-likelihoods of choices. No token is generated.

The branches of a request (see ``ChoiceTrie``) are sequences that share the pages of its prompt.
"""

from collections import abc
from dataclasses import dataclass

import numpy as np
import torch

from job.engine.logits.trie import Branch, ChoiceTrie, Floats, edge_logprobs
from job.engine.paged.schedule.scheduler import Work
from job.engine.paged.schedule.sequences import Sequence
from job.engine.paged.tasks.logits_task import Outcome
from job.records import Generation, Request, SampleKey


@dataclass(slots=True)
class Scored:
    """A request and what is known of its choices. Changes until no branch is left."""

    edge_logprobs: Floats
    num_branches_left: int
    failure: Generation | None = None


class Scoring:
    """Implements ``LogitsTask``."""

    def __init__(self, trie: ChoiceTrie) -> None:
        """Score the choices of a trie."""
        self._trie = trie
        self._scored: dict[SampleKey, Scored] = {}
        self._branches: dict[Sequence, Branch] = {}

    def begin(self, request: Request) -> list[Sequence]:
        """See ``LogitsTask``."""
        branches = self._trie.branches
        self._scored[request.key] = Scored(np.full(self._trie.num_edges, np.nan), len(branches))
        rows = []
        for branch in branches:
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

    def take(self, work: abc.Sequence[Work], logits: torch.Tensor) -> Outcome:
        """See ``LogitsTask``."""
        wanted = [(item, node) for item in work for node in self._nodes(item)]
        if not wanted:
            return Outcome()
        logprobs, is_finite = edge_logprobs(logits, [node for _, node in wanted], self._trie)
        are_non_finite = {item.sequence for (item, _), finite in zip(wanted, is_finite, strict=True) if not finite}
        for (item, node), values in zip(wanted, logprobs, strict=True):
            if item.sequence not in are_non_finite:
                self._scored[item.sequence.request.key].edge_logprobs[self._trie.edges(node)] = values
        ended = [w.sequence for w in work if w.end == len(w.sequence.token_ids) and w.sequence not in are_non_finite]
        generations = [generation for row in ended for generation in self._leave(row)]
        return Outcome(ended=ended, non_finite=list(are_non_finite), generations=generations)

    def fail(self, sequence: Sequence, failure: Generation) -> list[Generation]:
        """See ``LogitsTask``. The request is finished when its other branches are."""
        self._scored[sequence.request.key].failure = failure
        return self._leave(sequence)

    def _nodes(self, item: Work) -> tuple[int, ...]:
        """Return the nodes whose logits a step gives of a sequence."""
        begin = item.end - item.num_wanted - item.sequence.first_wanted
        return self._branches[item.sequence].nodes[begin:][: item.num_wanted]

    def _leave(self, row: Sequence) -> list[Generation]:
        """Count a branch less, and return its request if it was the last."""
        del self._branches[row]
        scored = self._scored[row.request.key]
        scored.num_branches_left -= 1
        if scored.num_branches_left:
            return []
        del self._scored[row.request.key]
        return [scored.failure or self._trie.generation(row.request, scored.edge_logprobs)]
