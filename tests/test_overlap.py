"""Steps that are launched before the host knows the tokens of the one before: every row gets what it gets without."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from job.engine.logits import sampling
from job.engine.logits.pipeline import PendingChoice
from job.engine.paged.executor import Executor
from job.engine.paged.tasks import decoding
from job.records import Request
from tests.serving import MODES, Observed, Served, ask, complete, finish, generate, make_engine, make_prompts, serve
from tests.test_mixed_tasks import answer, requests, tasks

NUM_HISTORIES = int(os.environ.get("JOB_OVERLAP_HISTORIES", "2"))

OVERLAPPING = {"overlap": True}


@pytest.fixture
def served(tiny_model: Callable[..., Path]) -> Served:
    """Return a llama whose rows end early, at different times. No grammar here needs a token that ends one."""
    served = serve(tiny_model())
    return replace(served, model=replace(served.model, eos_token_ids=(1, *range(140, 170))))


def overlapping(mode: str) -> dict[str, Any]:
    """Return the arguments of ``make_engine`` for an engine that overlaps."""
    return {**MODES[mode], "config": {**MODES[mode]["config"], **OVERLAPPING}}


@pytest.mark.parametrize("mode", MODES)
def test_all_kinds_of_tasks_get_the_same(served: Served, mode: str) -> None:
    """Grammars with forced tokens, stop texts, penalties, draws, scores: nothing is one step late."""
    without = make_engine(served, **MODES[mode])
    expected = finish(without, requests())
    engine = make_engine(served, **overlapping(mode))
    found = finish(engine, requests())
    assert [answer(generation) for generation in found] == [answer(generation) for generation in expected]
    assert engine.num_computed_tokens == without.num_computed_tokens
    assert engine.scheduler.pages.num_free >= engine.scheduler.pages.num_pages - 4, "only the last prompt is retained"


def test_a_step_is_launched_before_the_choice_of_the_one_before_is_known(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that computes nothing before it is waited for, and a host that waits as late as it can."""
    events: list[str] = []
    run, result = Executor.run, PendingChoice.result
    start_choice = decoding.start_choice

    def watched_run(self: Executor, step: Any, chosen: Any = None) -> torch.Tensor:
        events.append("launch" if step.num_chosen == 0 else "launch on what is pending")
        return run(self, step, chosen)

    def watched_start(*args: Any) -> PendingChoice:
        events.append("start")
        return start_choice(*args)

    def watched_result(self: PendingChoice) -> Any:
        events.append("collect")
        return result(self)

    monkeypatch.setattr(Executor, "run", watched_run)
    monkeypatch.setattr(decoding, "start_choice", watched_start)
    monkeypatch.setattr(PendingChoice, "result", watched_result)
    complete(make_engine(served, config=OVERLAPPING), [[5, 6, 7]], generate(max_new_tokens=4, ignore_eos=True))
    again = ["launch on what is pending", "collect", "start"]
    assert events == ["launch", "start", *again * 3, "collect"], "and nothing is computed after the last token"
    events.clear()
    complete(make_engine(served, config={"overlap": False}), [[5, 6, 7]], generate(max_new_tokens=2, ignore_eos=True))
    assert events == ["launch", "start", "collect"] * 2


def test_a_row_whose_nucleus_is_wide_is_chosen_for_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the host does not look whether a few candidates were enough."""
    task = generate(temperature=1.5, top_p=0.95, seed=3)
    expected = [list(g.token_ids) for g in complete(make_engine(served), make_prompts(), task)]
    monkeypatch.setattr(sampling, "may_read", lambda device: False)
    monkeypatch.setattr(sampling, "NUM_CANDIDATES", 20)
    for overlap in (False, True):
        for mode in ("all rows", "few pages and chunks"):
            config = {**MODES[mode]["config"], "overlap": overlap}
            generations = complete(make_engine(served, **{**MODES[mode], "config": config}), make_prompts(), task)
            assert [list(generation.token_ids) for generation in generations] == expected


class Failures:
    """Lets a share of all launches, starts and collections of more than one row fail."""

    def __init__(self, rng: random.Random, rate: float) -> None:
        self.rng, self.rate = rng, rate
        self.num: dict[str, int] = {}

    def __call__(self, where: str, num_rows: int) -> None:
        if num_rows > 1 and self.rng.random() < self.rate:
            self.num[where] = self.num.get(where, 0) + 1
            raise self.rng.choice([MemoryError("not enough memory"), KeyError("odd")])

    def install(self, served: Served, patch: pytest.MonkeyPatch) -> None:
        """Fail in all engines from now on."""
        forward, start_choice, result = served.model.module.forward, decoding.start_choice, PendingChoice.result

        def failing_forward(input_ids: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any) -> Any:
            num_rows = int((position_ids[0].diff() != 1).sum()) + 1
            self("launch", num_rows)
            return forward(input_ids=input_ids, position_ids=position_ids, **kwargs)

        def failing_start(logits: torch.Tensor, *args: Any) -> PendingChoice:
            self("start", len(logits))
            return start_choice(logits, *args)

        def failing_result(pending: PendingChoice) -> Any:
            self("collect", len(pending.tokens))
            return result(pending)

        patch.setattr(served.model.module, "forward", failing_forward)
        patch.setattr(decoding, "start_choice", failing_start)
        patch.setattr(PendingChoice, "result", failing_result)


def random_history(rng: random.Random) -> list[Request]:
    """Return requests of all kinds with random prompts, some of which begin alike."""
    kinds, prompts = tasks(), make_prompts()
    asked = []
    for row_idx in range(rng.randint(8, 30)):
        prompt = rng.choice(prompts)[: rng.randint(1, 60)]
        task = rng.choice([*kinds, *(generate(max_new_tokens=rng.randint(1, 16)) for _ in range(6))])
        asked.append(ask(prompt, task, row_idx=row_idx))
    return asked


@pytest.mark.parametrize("history", range(NUM_HISTORIES))
def test_random_histories(served: Served, observed: Observed, history: int) -> None:
    """Of small caches and steps that fail when they are launched, when a choice is started and when it is collected."""
    rng = random.Random(history)
    asked = random_history(rng)
    expected = [answer(generation) for generation in finish(make_engine(served), asked)]
    config = {"max_batch_rows": rng.choice([2, 5, 16, 64]), "max_batch_tokens": rng.choice([32, 64, 2048])}
    config["share_prefixes"] = rng.random() < 0.7
    failures = Failures(rng, rng.choice([0.0, 0.05, 0.2]))
    with pytest.MonkeyPatch.context() as patch:
        failures.install(served, patch)
        engine = make_engine(served, num_pages=rng.choice([6, 8, 12, 256]), config={**config, **OVERLAPPING})
        waiting, generations = list(asked), []
        while waiting or engine.num_pending:
            for _ in range(rng.randint(0, 4)):
                if waiting:
                    engine.submit(waiting.pop(0))
            generations += engine.step()
    generations.sort(key=lambda generation: generation.request.key)
    assert [answer(generation) for generation in generations] == expected
