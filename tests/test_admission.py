"""Rows that wait to be admitted together."""

import random

import pytest

from job.engine.paged.schedule.admission import MAX_EMPTY_SHARE, QUIET_STEPS
from job.engine.paged.schedule.pages import Pages
from job.engine.paged.schedule.scheduler import Scheduler
from job.engine.paged.schedule.sequences import Sequence
from job.records import Request
from job.tasks import Generate, SamplingParams

TASK = Generate(params=SamplingParams())


class Run:
    """A run of rows of (prompt tokens, new tokens)."""

    def __init__(self, rows: list[tuple[int, int]], *, holds_rows: bool, num_pages: int = 1000, max_rows: int = 32):
        """Submit them."""
        pages = Pages(num_pages, 16)
        self.scheduler = Scheduler(pages, max_rows=max_rows, max_tokens=256, holds_rows=holds_rows)
        self.wanted: dict[Sequence, int] = {}
        self.admitted: list[int] = []
        """How many rows ran after each step."""
        self.has_prompts: list[bool] = []
        for row_idx, (num_prompt, num_new) in enumerate(rows):
            self.submit(row_idx, num_prompt, num_new)

    def submit(self, row_idx: int, num_prompt: int, num_new: int) -> None:
        prompt = [row_idx * 1000 + at for at in range(num_prompt)]
        sequence = Sequence.of(Request(row_idx=row_idx, sample_idx=0, prompt_ids=prompt, task=TASK))
        self.wanted[sequence] = num_prompt + num_new
        self.scheduler.submit([sequence])

    def step(self) -> None:
        work = self.scheduler.next_work()
        assert work, "a step in which nothing happens would be the last one"
        self.has_prompts.append(any(item.num_tokens > 1 for item in work))
        self.admitted.append(len(self.scheduler.running))
        self.scheduler.to_step(work)
        for item in work:
            sequence = item.sequence
            sequence.num_cached = item.end
            if item.num_wanted:
                sequence.token_ids.append(0)
                if len(sequence.token_ids) >= self.wanted[sequence]:
                    self.scheduler.finish(sequence)

    def finish(self) -> None:
        for _ in range(100_000):
            if not self.scheduler.num_pending:
                return
            self.step()
        raise AssertionError("the run does not end")


def rows_of(seed: int, num_rows: int = 300) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randrange(2, 20), rng.randrange(1, 60)) for _ in range(num_rows)]


def test_most_steps_have_no_prompts() -> None:
    runs = [Run(rows_of(0), holds_rows=holds_rows) for holds_rows in (False, True)]
    shares = []
    for run in runs:
        run.finish()
        shares.append(1 - sum(run.has_prompts) / len(run.has_prompts))
    assert shares[0] < 0.6 and shares[1] > 0.8
    assert len(runs[1].admitted) < 1.25 * len(runs[0].admitted), "few slots are empty for that"


def test_slots_are_filled_at_once_in_the_beginning() -> None:
    run = Run([(40, 50)] * 64, holds_rows=True)
    for _ in range(6):
        run.step()
    assert run.admitted[-1] == 32


def test_a_row_that_comes_while_slots_are_empty_does_not_wait_for_others() -> None:
    run = Run([(4, 50)] * 3, holds_rows=True)
    run.step()
    run.step()
    run.submit(99, 4, 4)
    run.step()
    run.step()
    assert run.admitted[-1] == 4


def test_a_slot_waits_for_ten_steps_at_most_after_a_step_with_prompts() -> None:
    run = Run([(4, 8)] + [(4, 400)] * 31 + [(4, 400)] * 8, holds_rows=True)
    while run.admitted[-1:] != [31]:
        run.step()
    for _ in range(QUIET_STEPS + 1):
        run.step()
    assert run.admitted[-1] == 32


def test_rows_are_admitted_before_many_slots_are_empty() -> None:
    """However long their prompts are."""
    rng = random.Random(1)
    run = Run([(rng.randrange(100, 200), rng.randrange(5, 40)) for _ in range(200)], holds_rows=True)
    while run.scheduler.num_pending > 40:
        run.step()
        if run.admitted[-1] < 32 * (1 - MAX_EMPTY_SHARE) - 2:
            assert run.has_prompts[-1] or len(run.admitted) < 20


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_pages", [12, 60])
def test_every_run_ends_with_few_pages(seed: int, num_pages: int) -> None:
    """Rows are preempted, and wait for pages rather than for slots."""
    run = Run(rows_of(seed, 120), holds_rows=True, num_pages=num_pages)
    run.finish()
    assert not run.scheduler.unfit


def test_few_pages_are_used_although_there_are_many_slots() -> None:
    """What is empty is counted among the slots that can be used at all."""
    rng = random.Random(3)
    rows = [(rng.randrange(100, 250), rng.randrange(20, 200)) for _ in range(80)]
    runs = [Run(rows, holds_rows=holds_rows, num_pages=300, max_rows=256) for holds_rows in (False, True)]
    for run in runs:
        run.finish()
    assert len(runs[1].admitted) < 1.15 * len(runs[0].admitted)


def test_rows_that_end_with_their_prompt_are_not_held() -> None:
    """Scoring: nothing is decoded, so nothing is gained by waiting."""
    run = Run([(20, 1)] * 200, holds_rows=True)
    run.finish()
    assert len(run.admitted) <= 200 * 20 // 256 + 8
