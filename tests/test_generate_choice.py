"""The leader's part in transformers' ``generate``, without a model: what it chooses, where rows end, when it leaves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from job.config import EngineConfig
from job.engine.build import build_static
from job.engine.logits.constraint import Constraints
from job.engine.logits.reductions import token_logprobs
from job.engine.model.loading import LoadedModel
from job.engine.static.token_choice import HasLeft, LeadingChooser
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.tasks import EndsText, Generate
from tests.serving import ask, generate, load

VOCAB, EOS, PAD = 12, 1, 11


class Batch:
    """Three rows whose logits make them say the same token at every step, unless they are told otherwise."""

    def __init__(
        self,
        ends_text: EndsText | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        tasks: Sequence[Generate] | None = None,
        prompts: Sequence[Sequence[int]] = ((2, 3), (4, 5), (6, 7)),
        **params: Any,
    ) -> None:
        """Begin after these prompts."""
        self.ids = torch.tensor([[2, 3], [4, 5], [6, 7]])
        tasks = tasks or [generate(ends_text=ends_text, **params)] * 3
        requests = [ask(ids, tasks[row], row_idx=row) for row, ids in enumerate(prompts)]
        model = LoadedModel(module=None, dtype=torch.float32, eos_token_ids=(EOS,), pad_token_id=PAD)
        replica = Replica(read_process_info({}, 1))
        self.chooser = LeadingChooser(replica, model, requests, Constraints(), should_stop)

    @property
    def completions(self) -> list[list[int]]:
        """What the rows have generated."""
        return [row.completion_ids for row in self.chooser.rows]

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
        asked.append([list(ids) for ids in completions])
        return [ids[-1] == 9 for ids in completions]

    batch = Batch(ends_text)
    batch.step(8, 9, EOS)
    batch.step(8, 8, 8)
    batch.step(9, 8, 8)
    assert asked == [[[8], [9]], [[8, 8]], [[8, 8, 9]]]
    assert {row: end.finish_reason for row, end in batch.chooser.ends.items()} == {0: "stop", 1: "stop", 2: "stop"}
    assert batch.completions == [[8, 8, 9], [9], [EOS]]


@pytest.mark.parametrize("last", [9, EOS])
def test_a_batch_whose_rows_have_all_ended_is_left(last: int) -> None:
    """A regression: ``generate`` knows nothing of stop strings, and went on to max_new_tokens for nothing. It is left
    with the last token, not after one more step.
    """
    batch = Batch(lambda completions: [ids[-1] == 9 for ids in completions])
    batch.step(9, EOS, 8)
    assert not batch.has_left
    batch.step(8, 8, last)
    assert batch.has_left and batch.completions == [[9], [EOS], [8, last]]


def test_a_request_to_stop_leaves_the_batch() -> None:
    stopped = False
    batch = Batch(should_stop=lambda: stopped)
    batch.step(8, 8, 8)
    assert not batch.has_left
    stopped = True
    batch.step(8, 8, 8)
    assert batch.has_left and batch.completions == [[8]] * 3 and batch.chooser.failure is None
    assert not batch.chooser.ends


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
        chosen = torch.tensor([ids[-1] for ids in batch.completions])
        found = torch.tensor([logprobs[-1] for logprobs in batch.chooser.logprobs])
        torch.testing.assert_close(found, token_logprobs(logits, chosen), rtol=0, atol=1e-6)
    assert [len(logprobs) for logprobs in batch.chooser.logprobs] == [2, 2, 2]


def test_only_the_prompt_and_the_completion_of_a_row_count_as_seen() -> None:
    """Padding does not, nor whatever else ``generate`` keeps: its ids need not begin with the prompt."""
    for ids in (torch.tensor([[0, 3], [0, 5], [0, 7]]), torch.empty(3, 0, dtype=torch.int64)):
        batch = Batch(prompts=[[3], [0, 5], [6, 7]], repetition_penalty=10.0)
        batch.ids = ids
        batch.step(0, 0, 0)
        assert batch.completions == [[0], [VOCAB - 1], [0]]
        batch.step(0, 0, 0)
        assert batch.completions == [[0, VOCAB - 1], [VOCAB - 1, VOCAB - 2], [0, VOCAB - 1]]


def test_a_row_that_is_not_finite_is_noted_and_harms_no_other() -> None:
    batch = Batch()
    logits = torch.eye(VOCAB)[[5, 6, 7]]
    logits[1, 3] = torch.nan
    batch.chooser(batch.ids, logits)
    assert batch.chooser.non_finite == {1}
    assert batch.completions[::2] == [[5], [7]]


def test_each_row_ends_at_its_own_number_of_tokens_and_the_batch_with_the_last() -> None:
    batch = Batch(tasks=[generate(max_new_tokens=most) for most in (1, 3, 2)])
    for _ in range(2):
        batch.step(8, 8, 8)
        assert not batch.has_left
    batch.step(8, 8, 8)
    assert batch.has_left and batch.completions == [[8], [8] * 3, [8] * 2]
    assert {end.finish_reason for end in batch.chooser.ends.values()} == {"length"}
    assert batch.ids[:, 2:].tolist() == [[8, PAD, PAD], [8, 8, 8], [8, 8, PAD]]


def test_one_row_may_ignore_what_ends_another() -> None:
    batch = Batch(tasks=[generate(max_new_tokens=2, ignore_eos=True), generate(), generate(temperature=0.01)])
    batch.step(EOS, EOS, EOS)
    assert {row: end.finish_reason for row, end in batch.chooser.ends.items()} == {1: "stop", 2: "stop"}
    batch.step(EOS, 8, 8)
    assert batch.has_left and batch.completions == [[EOS, EOS], [EOS], [EOS]]


def test_a_tokenizer_that_raises_ends_the_row_that_it_raises_on() -> None:
    """A regression: the leader left the loop of ``generate`` alone, and its followers waited for its tokens."""

    def ends_text(completions: Sequence[Sequence[int]]) -> list[bool]:
        if any(9 in ids for ids in completions):
            raise IndexError("piece id is out of range")
        return [ids[-1] == 3 for ids in completions]

    batch = Batch(ends_text)
    batch.step(3, 9, 8)
    assert not batch.has_left
    ends = batch.chooser.ends
    assert ends[0].finish_reason == "stop" and set(ends) == {0, 1}
    assert str(ends[1].error) == "engine_error: looking for stop strings: IndexError: piece id is out of range"


def test_models_that_read_padding_are_computed_row_by_row(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tokens were wrong in batches, without a word."""
    model, replica = load(tiny_model("llama"))
    monkeypatch.setattr(model.module.config, "model_type", "xlstm")
    notes: list[str] = []
    built: list[EngineConfig] = []
    monkeypatch.setattr("job.engine.build.StaticEngine", lambda model, config, *rest: built.append(config))
    for max_rows in (None, 8, 1):
        build_static(
            model, EngineConfig(max_batch_rows=max_rows), replica, should_stop=lambda: False, note=notes.append
        )
    assert [config.max_batch_rows for config in built] == [1, 1, 1]
    assert len(notes) == 2 and "is computed row by row" in notes[0]
