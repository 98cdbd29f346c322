"""ChoiceTrie: every node's logits exactly once, and the right sums."""

import random

import numpy as np
import pytest
import torch

from job.engine.logits.trie import ChoiceTrie, edge_logprobs
from job.records import Request
from job.tasks import Score

REQUEST = Request(row_idx=3, sample_idx=0, prompt_ids=[1], task=Score(choice_ids=((1,),)))

SETS = {
    "first tokens differ": [(5,), (6,), (7,)],
    "common beginnings": [(5, 6), (5, 7), (8, 9, 10), (8, 9, 11), (12,)],
    "one begins another": [(5,), (5, 6), (5, 6, 7)],
    "the longer one comes first": [(5, 6, 7), (5,), (5, 6)],
    "one choice": [(5, 6)],
}


def nodes_before(choices: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """Return the beginnings behind which a token's probability is wanted."""
    return {choice[:depth] for choice in choices for depth in range(len(choice))}


@pytest.mark.parametrize("choices", SETS.values(), ids=SETS)
def test_branches_give_the_logits_of_every_node_exactly_once(choices: list[tuple[int, ...]]) -> None:
    trie = ChoiceTrie(choices)
    given: dict[int, tuple[int, ...]] = {}
    for branch in trie.branches:
        for place, node in enumerate(branch.nodes):
            assert node not in given
            given[node] = branch.token_ids[: branch.num_known + place]
    assert sorted(given.values()) == sorted(nodes_before(choices))
    for node, beginning in given.items():
        behind = {choice[len(beginning)] for choice in choices if choice[: len(beginning)] == beginning != choice}
        assert set(trie.edge_tokens(node)) == behind
    assert trie.num_edges == len({choice[:depth] for choice in choices for depth in range(1, len(choice) + 1)})


def test_choices_whose_first_tokens_differ_and_end_need_the_prompt_alone() -> None:
    (branch,) = ChoiceTrie(SETS["first tokens differ"]).branches
    assert branch.token_ids == () and branch.nodes == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_the_score_of_a_choice_is_the_sum_along_its_path(seed: int) -> None:
    rng = random.Random(seed)
    choices = list({tuple(rng.randrange(3) for _ in range(rng.randint(1, 4))) for _ in range(9)})
    logits_of = {beginning: torch.randn(3, dtype=torch.float64) for beginning in nodes_before(choices)}
    trie = ChoiceTrie(choices)
    wanted = [
        (node, logits_of[branch.token_ids[: branch.num_known + place]])
        for branch in trie.branches
        for place, node in enumerate(branch.nodes)
    ]
    rng.shuffle(wanted)
    nodes = [node for node, _ in wanted]
    logprobs, is_finite = edge_logprobs(torch.stack([logits for _, logits in wanted]), [(trie, node) for node in nodes])
    edges = np.full(trie.num_edges, np.nan)
    for node, values in zip(nodes, logprobs, strict=True):
        edges[trie.edges(node)] = values
    expected = [
        sum(float(logits_of[choice[:depth]].log_softmax(-1)[choice[depth]]) for depth in range(len(choice)))
        for choice in choices
    ]
    generation = trie.generation(REQUEST, edges)
    assert all(is_finite) and generation.numbers == pytest.approx(expected, abs=1e-5)
    assert (generation.request, generation.finish_reason, generation.error) == (REQUEST, "stop", None)


def test_a_row_whose_choices_are_all_impossible_is_an_error_row() -> None:
    generation = ChoiceTrie([(0,), (1,)]).generation(REQUEST, np.array([-np.inf, -np.inf]))
    assert generation.error is not None and generation.numbers is None


def test_logits_that_are_not_finite_are_told() -> None:
    trie = ChoiceTrie([(0,), (1,)])
    logits = torch.tensor([[0.0, 1.0], [torch.nan, 0.0], [torch.inf, 0.0], [-torch.inf, 0.0]])
    assert edge_logprobs(logits, [(trie, 0)] * 4)[1] == [True, False, False, True]
