"""Choices as a trie of token ids: what choices have in common is computed once, and so is every distinct continuation.

An edge is a token that follows a node; the log-likelihood of a choice is the sum over its edges. A node's edges need
the logits after the node's tokens. So the model must read the prompt, followed by the tokens of every inner node: that
takes one branch for each inner node that has no inner node below it. If every choice is a single token, the only branch
is the prompt itself.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from job.engine.failures import failed
from job.engine.logits.reductions import log_totals
from job.engine.transfers import Download, Upload
from job.records import Generation, Request

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens to read after a prompt, and what their logits are for."""

    token_ids: tuple[int, ...]
    nodes: tuple[int, ...]
    """The nodes whose logits this branch gives, at its last ``len(nodes)`` places; the prompt's end is a place, too."""

    @property
    def num_known(self) -> int:
        """How many of its nodes, from the root on, belong to earlier branches."""
        return len(self.token_ids) + 1 - len(self.nodes)


class ChoiceTrie:
    """The trie of some choices. Nodes are numbered; the root is 0.

    >>> trie = ChoiceTrie([(7, 1), (7, 2, 3), (8,)])
    >>> [(branch.token_ids, branch.nodes) for branch in trie.branches]
    [((7, 2), (0, 1, 2))]
    >>> [trie.edge_tokens(node).tolist() for node in range(3)]
    [[7, 8], [1, 2], [3]]
    """

    def __init__(self, choices: Sequence[Sequence[int]]) -> None:
        """Build the trie.

        Args:
            choices: the token ids of each choice; none is empty.
        """
        self._nodes: list[dict[int, int | None]] = [{}]
        """For each inner node: the token of each edge, and the inner node that it leads to, if any."""
        for choice in choices:
            self._insert(choice)
        self._first_edges = np.cumsum([0, *(len(edges) for edges in self._nodes)])
        self._edge_tokens = [np.array(list(edges), np.int64) for edges in self._nodes]
        self._places = [{token: place for place, token in enumerate(edges)} for edges in self._nodes]
        self._paths = [self._edges_of(choice) for choice in choices]
        self.branches = tuple(self._branches())

    @property
    def num_edges(self) -> int:
        """The number of tokens whose log probabilities are needed."""
        return int(self._first_edges[-1])

    @property
    def max_branch_tokens(self) -> int:
        """The number of tokens that the longest branch adds to a prompt."""
        return max(len(branch.token_ids) for branch in self.branches)

    def edges(self, node: int) -> slice:
        """Return the positions of a node's edges among all edges."""
        return slice(int(self._first_edges[node]), int(self._first_edges[node + 1]))

    def edge_tokens(self, node: int) -> npt.NDArray[np.int64]:
        """Return the tokens of a node's edges, in the order of ``edges``."""
        return self._edge_tokens[node]

    def generation(self, request: Request, logprobs: Floats) -> Generation:
        """Return a request's answer from the log probabilities of all edges: the log-likelihood of each choice."""
        sums = [float(logprobs[path].sum()) for path in self._paths]
        if max(sums) == -np.inf:
            return failed(request, "non_finite_logits", "no choice has a probability above 0")
        return Generation(request=request, token_ids=[], finish_reason="stop", numbers=sums)

    def _insert(self, choice: Sequence[int]) -> None:
        node = 0
        for depth, token in enumerate(choice):
            child = self._nodes[node].setdefault(token, None)
            if depth + 1 == len(choice):
                return
            if child is None:
                child = len(self._nodes)
                self._nodes.append({})
                self._nodes[node][token] = child
            node = child

    def _edges_of(self, choice: Sequence[int]) -> list[int]:
        edges, node = [], 0
        for token in choice:
            edges.append(int(self._first_edges[node]) + self._places[node][token])
            node = self._nodes[node][token] or 0  # not used after the last token
        return edges

    def _branches(self) -> list[Branch]:
        branches: list[Branch] = []
        waiting: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = [(0, (), (0,))]
        seen: set[int] = set()
        while waiting:
            node, tokens, path = waiting.pop()
            inner = [(token, child) for token, child in self._nodes[node].items() if child is not None]
            if not inner:
                branches.append(Branch(tokens, tuple(n for n in path if n not in seen)))
                seen.update(path)
            waiting += [(child, (*tokens, token), (*path, child)) for token, child in reversed(inner)]
        return branches


@functools.lru_cache(maxsize=64)
def trie_of(choice_ids: tuple[tuple[int, ...], ...]) -> ChoiceTrie:
    """Return the trie of a task's choices, which are usually the same for all rows of a run."""
    return ChoiceTrie(choice_ids)


class PendingScores:
    """The log probabilities of nodes' edges, which the device may still be computing."""

    tokens = None
    """No token is chosen."""

    def __init__(self, values: torch.Tensor, totals: torch.Tensor, num_edges: npt.NDArray[np.int64]) -> None:
        """Start to copy scores to the host.

        Args:
            values: [E] float32: the log probabilities of all nodes' edges, node after node.
            totals: [W] float32: what ``log_totals`` gives for the nodes' logits.
            num_edges: [W]: how many edges each node has.
        """
        self._ends = np.cumsum(num_edges)
        self._copied = Download(torch.cat([values, totals]))

    def result(self) -> tuple[list[Floats], list[bool]]:
        """Wait for the scores. Return those of each node, and whether the node's logits are finite."""
        values, totals = np.split(self._copied.result().astype(np.float64), [int(self._ends[-1])])
        # A total is NaN or infinite if a logit is NaN or +inf, and -inf if all are.
        return np.split(values, self._ends[:-1]), np.isfinite(totals).tolist()


def start_scores(logits: torch.Tensor, nodes: Sequence[tuple[ChoiceTrie, int]]) -> PendingScores:
    """Start to compute the log probabilities of nodes' edges, from the nodes' logits [W, V]; W is at least 1."""
    tokens_of = [trie.edge_tokens(node) for trie, node in nodes]
    num_edges = np.array(list(map(len, tokens_of)), np.int64)
    rows, tokens = Upload(logits.device)(np.repeat(np.arange(len(nodes)), num_edges), np.concatenate(tokens_of))
    totals = log_totals(logits)
    return PendingScores(logits[rows, tokens].float() - totals[rows], totals, num_edges)


def edge_logprobs(logits: torch.Tensor, nodes: Sequence[tuple[ChoiceTrie, int]]) -> tuple[list[Floats], list[bool]]:
    """Return the scores that ``start_scores`` starts to compute."""
    return start_scores(logits, nodes).result()
