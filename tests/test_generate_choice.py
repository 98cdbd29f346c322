"""The leader's part in transformers' ``generate``, without a model: what it chooses, where rows end, when it leaves."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from job.config import SamplingParams
from job.engine.logits.sampling import token_logprobs
from job.engine.static.token_choice import HasLeft, LeadingChooser
from job.launch.environment import read_process_info
from job.launch.replica import Replica

VOCAB, EOS = 12, 1


class Batch:
    """Three rows whose logits make them say the same token at every step, unless they are told otherwise."""

    def __init__(
        self,
        ends_text: Callable[[Sequence[Sequence[int]]], Sequence[bool]] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **params: Any,
    ) -> None:
        """Begin after prompts of two tokens."""
        keys = [(row_idx, 0) for row_idx in range(3)]
        replica = Replica(read_process_info({}, 1))
        self.chooser = LeadingChooser(replica, SamplingParams(**params), keys, [EOS], should_stop, ends_text)
        self.ids = torch.tensor([[2, 3], [4, 5], [6, 7]])
        self.chooser.mask = torch.ones_like(self.ids)

    def step(self, *tokens: int) -> torch.Tensor:
        """Choose once, with these tokens as the most likely ones; return the logits."""
        logits = torch.linspace(0, 1, VOCAB).repeat(3, 1)
        logits[torch.arange(3), torch.tensor(tokens)] = 4.0
        chosen = self.chooser(self.ids, logits).argmax(dim=-1)
        self.ids = torch.cat([self.ids, chosen[:, None]], dim=1)
        return logits

    @property
    def has_left(self) -> bool:
        """Whether ``generate`` would end."""
        (has_left,) = set(HasLeft(self.chooser)(self.ids, torch.empty(0)).tolist())
        return bool(has_left)


def test_one_token_is_left_possible() -> None:
    batch = Batch()
    scores = batch.chooser(batch.ids, torch.eye(VOCAB)[[5, 6, 7]])
    assert scores.isfinite().sum(dim=1).tolist() == [1, 1, 1] and scores.argmax(dim=1).tolist() == [5, 6, 7]


def test_rows_end_at_their_stop_strings() -> None:
    """Each is asked about with what it has generated, as long as it has not ended."""
    asked: list[Sequence[Sequence[int]]] = []

    def ends_text(completions: Sequence[Sequence[int]]) -> list[bool]:
        asked.append(completions)
        return [ids[-1] == 9 for ids in completions]

    batch = Batch(ends_text)
    batch.step(8, 9, EOS)
    batch.step(8, 8, 8)
    batch.step(9, 8, 8)
    assert asked == [[[8], [9]], [[8, 8]], [[8, 8, 9]]]
    assert batch.chooser.stops == {1: 1, 0: 3}


@pytest.mark.parametrize("last", [9, EOS])
def test_a_batch_whose_rows_have_all_ended_is_left(last: int) -> None:
    """A regression: ``generate`` knows nothing of stop strings, and went on to max_new_tokens for nothing."""
    batch = Batch(lambda completions: [ids[-1] == 9 for ids in completions])
    batch.step(9, EOS, 8)
    assert not batch.has_left
    batch.step(8, 8, last)
    assert not batch.has_left
    batch.step(8, 8, 8)
    assert batch.has_left and len(batch.chooser.steps) == 2


def test_a_request_to_stop_leaves_the_batch() -> None:
    stopped = False
    batch = Batch(should_stop=lambda: stopped)
    batch.step(8, 8, 8)
    assert not batch.has_left
    stopped = True
    batch.step(8, 8, 8)
    assert batch.has_left and len(batch.chooser.steps) == 1 and batch.chooser.failure is None


def test_a_failure_while_choosing_leaves_the_batch_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch()
    monkeypatch.setattr(LeadingChooser, "_choose", lambda *_: 1 / 0)
    batch.step(8, 8, 8)
    assert batch.has_left and batch.chooser.failure == "ZeroDivisionError: division by zero"


def test_log_probabilities_are_kept_for_every_step() -> None:
    """The model's own: before penalty and temperature."""
    batch = Batch(logprobs=True, temperature=0.5, repetition_penalty=3.0)
    for tokens in ((8, 8, 8), (8, 9, 2)):
        logits = batch.step(*tokens)
        expected = token_logprobs(logits, batch.chooser.steps[-1])
        torch.testing.assert_close(batch.chooser.logprobs[-1], expected, rtol=0, atol=1e-6)
    assert len(batch.chooser.logprobs) == len(batch.chooser.steps) == 2


def test_padding_is_no_token_that_was_seen() -> None:
    """Token 0 pads the first row; the second row has it in its prompt."""
    batch = Batch(repetition_penalty=10.0)
    batch.ids = torch.tensor([[0, 3], [0, 5], [6, 7]])
    batch.chooser.mask = torch.tensor([[0, 1], [1, 1], [1, 1]])
    batch.step(0, 0, 0)
    assert batch.chooser.steps[0].tolist() == [0, VOCAB - 1, 0]


def test_a_row_that_is_not_finite_is_noted_and_harms_no_other() -> None:
    batch = Batch()
    logits = torch.eye(VOCAB)[[5, 6, 7]]
    logits[1, 3] = torch.nan
    batch.chooser(batch.ids, logits)
    assert batch.chooser.is_finite.tolist() == [True, False, True]
    assert batch.chooser.steps[0].tolist()[::2] == [5, 7]
