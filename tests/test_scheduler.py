"""The scheduler, driven without a model: random workloads, and a cache that knows what every place must hold.

What a model stores for a token depends on the token, its position and all tokens before it. So the simulated cache
stores a number made of just these for every place, and every step compares all that its sequences read with what they
should find. Page tables are kept from the packed steps alone, as followers keep them.
"""

import random
from collections import Counter, abc, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from job.engine.paged.schedule.pages import Pages
from job.engine.paged.schedule.scheduler import Scheduler
from job.engine.paged.schedule.sequences import Sequence, in_order
from job.engine.paged.schedule.step import Step
from job.engine.paged.schedule.work import Work
from job.records import Request
from job.tasks import Generate, SamplingParams

TASK = Generate(params=SamplingParams())
"""The scheduler does not look at it."""

CLEARED = 0
"""What a cleared place holds; a place that was never cleared holds None."""


def request(row_idx: int, prompt_ids: abc.Sequence[int], sample_idx: int = 0) -> Request:
    return Request(row_idx=row_idx, sample_idx=sample_idx, prompt_ids=list(prompt_ids), task=TASK)


def running(row_idx: int, prompt_ids: abc.Sequence[int]) -> Sequence:
    return Sequence.of(request(row_idx, prompt_ids))


def scheduler(num_pages: int = 100, page_tokens: int = 4, **options: Any) -> Scheduler:
    return Scheduler(Pages(num_pages, page_tokens), **{"max_rows": 8, "max_tokens": 64, **options})


def memories(token_ids: abc.Sequence[int]) -> list[int]:
    """Return for each token the number that stands for its keys and values."""
    found, memory = [], 1
    for token in token_ids:
        memory = hash((memory, token)) or 1
        found.append(memory)
    return found


class Cache:
    """Executes steps as ``KVCache`` and ``BlockTables`` do, and checks what attention would read."""

    def __init__(self, page_tokens: int) -> None:
        """Hold garbage."""
        self.page_tokens = page_tokens
        self.tables: dict[tuple[int, int], int] = {}
        self.places: dict[tuple[int, int], int | None] = {}

    def execute(self, step: Step, token_ids_of_slots: dict[int, list[int]]) -> None:
        """Clear, write, copy, then read, in this order."""
        for slot, page_idx, page in step.new_pages.tolist():
            self.tables[slot, page_idx] = page
        for page in step.pages_to_clear[:, 0].tolist():
            self.places |= {(page, place): CLEARED for place in range(self.page_tokens)}
        self._write(step, token_ids_of_slots)
        copied = {
            (page, place): self.places.get((donor, place))
            for donor, page, num_tokens in step.copies.tolist()
            for place in range(num_tokens)
        }
        assert len(copied) == step.copies[:, 2].sum(), "a place is copied to twice"
        self.places |= copied
        for slot, before, now, _ in step.sequences.tolist():
            self._read(slot, before + now, memories(token_ids_of_slots[slot][: before + now]))

    def place(self, slot: int, position: int) -> tuple[int, int]:
        """Return where a token lies."""
        return self.tables[slot, position // self.page_tokens], position % self.page_tokens

    def _write(self, step: Step, token_ids_of_slots: dict[int, list[int]]) -> None:
        tokens, written = deque(step.token_ids.tolist()), set()
        for slot, before, now, _ in step.sequences.tolist():
            right = memories(token_ids_of_slots[slot][: before + now])
            for position in range(before, before + now):
                assert tokens.popleft() == token_ids_of_slots[slot][position], "another token"
                place = self.place(slot, position)
                assert self.places[place] == CLEARED, "a place in use is written to"
                assert place not in written, "a place is written to twice"
                written.add(place)
                self.places[place] = right[position]
        assert not tokens

    def _read(self, slot: int, num_tokens: int, right: list[int]) -> None:
        found = [self.places[self.place(slot, position)] for position in range(num_tokens)]
        assert found == right, "a sequence reads what is not its own"
        tail = range(num_tokens, -(-num_tokens // self.page_tokens) * self.page_tokens)
        # Hidden, but multiplied all the same: garbage there would make NaN of zero times it.
        assert all(self.places[self.place(slot, position)] == CLEARED for position in tail)


@dataclass
class Simulation:
    """What the engine does around a scheduler, with tokens from a random generator."""

    scheduler: Scheduler
    rng: random.Random
    num_new_tokens: dict[int, int]
    """Row to number of tokens after which it ends."""
    poisoned: frozenset[int] = frozenset()
    """Rows on which every step fails that computes their last prompt token."""
    failure_rate: float = 0.0
    """Share of steps for which there is too little memory."""
    prompts: dict[int, abc.Sequence[int]] = field(default_factory=dict)
    generated: dict[int, list[int]] = field(default_factory=dict)
    outcomes: Counter[tuple[int, str]] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    steps: list[list[int]] = field(default_factory=list)
    """Rows of each step."""

    def __post_init__(self) -> None:
        self.cache = Cache(self.scheduler.pages.page_tokens)
        self.num_slots = self.scheduler.max_rows
        self.last_pages = 0
        """Pages of the prompt that ended last, which may linger."""

    def submit(self, requests: Iterable[Request]) -> None:
        """Submit requests."""
        for item in requests:
            self.prompts[item.row_idx], self.generated[item.row_idx] = item.prompt_ids, []
            self.scheduler.submit([Sequence.of(item)])

    def run(self, max_steps: int = 5000) -> None:
        """Step until nothing is pending."""
        for _ in range(max_steps):
            if not self.scheduler.num_pending:
                return
            self.step()
        raise AssertionError("it goes on and on")

    def step(self) -> list[Work]:
        """Do one step as the engine does."""
        before = set(self.scheduler.running)
        work = self.scheduler.next_work()
        assert work or self.scheduler.unfit, "nothing to do, and nothing given up, with sequences pending"
        assert set(self.scheduler.running) <= before or len(self.scheduler.running) <= self.scheduler.max_rows
        self.give_up_on_unfit()
        if not work:
            return work
        self.check(work)
        step = Step.unpack(self.scheduler.to_step(work).pack())
        self.steps.append([item.sequence.request.row_idx for item in work])
        is_poisoned = any(item.num_wanted and item.sequence.request.row_idx in self.poisoned for item in work)
        is_too_large = self.rng.random() < self.failure_rate
        if not (is_poisoned or is_too_large) or self.rng.random() < 0.5:  # a step may fail after it has written
            self.execute(work, step)
        if is_too_large:
            self.run_out_of_memory(work)
        elif is_poisoned:
            self.search(work)
        else:
            self.advance(work)
        return work

    def give_up_on_unfit(self) -> None:
        """Take the rows for which the whole cache is too small."""
        pages = self.scheduler.pages
        for sequence in self.scheduler.unfit:
            assert pages.num_needed(len(sequence.token_ids)) > pages.num_pages, "it would have fitted"
            self.outcomes[sequence.request.row_idx, "unfit"] += 1
        self.scheduler.unfit = []

    def check(self, work: list[Work]) -> None:
        """Check what every step must keep to."""
        subject = self.scheduler
        counts = [item.num_tokens for item in work]
        sequences = [item.sequence for item in work]
        assert min(counts) > 0 and sum(counts) <= subject.max_tokens
        assert counts == sorted(counts, key=lambda count: count > 1), "decode is not first"
        assert len(set(sequences)) == len(sequences) <= len(subject.running)
        slots = [sequence.slot for sequence in subject.running]
        assert len(set(slots)) == len(slots) and all(0 <= slot < self.num_slots for slot in slots)
        assert all(sequence in subject.running for sequence in sequences)
        assert all(item.end <= len(item.sequence.token_ids) for item in work)
        assert all(len(item.sequence.pages) * self.cache.page_tokens >= item.end for item in work)
        decoding = [sequence for sequence in subject.running if sequence.num_missing == 1]
        assert len(decoding) > subject.max_tokens or set(decoding) <= set(sequences), "a running row gets no token"
        held = {page for sequence in subject.running for page in sequence.pages}
        assert subject.pages.num_pages - subject.pages.num_free <= len(held) + self.last_pages
        self.events["chunks"] += sum(not item.num_wanted for item in work)
        self.events["mixed"] += counts[0] == 1 < counts[-1]

    def execute(self, work: list[Work], step: Step) -> None:
        """Execute a step as all ranks do."""
        expected = [(w.sequence.slot, w.sequence.num_cached, w.num_tokens, w.num_wanted) for w in work]
        assert [tuple(row) for row in step.sequences.tolist()] == expected
        places = [(slot, idx) for slot, idx, _ in step.new_pages.tolist()]
        assert len(places) == len(set(places)), "a device would enter either page"
        self.cache.execute(step, {item.sequence.slot: item.sequence.token_ids for item in work})
        self.events["shared"] += len(step.new_pages) - len(step.pages_to_clear)
        self.events["copied"] += len(step.copies)

    def advance(self, work: list[Work]) -> None:
        """Choose tokens, and end rows."""
        sampled = [item.sequence for item in work if item.num_wanted]
        for item in work:
            item.sequence.num_cached = item.end
        for sequence in sampled:
            row_idx, token = sequence.request.row_idx, self.rng.randrange(3)
            sequence.token_ids.append(token)
            self.generated[row_idx].append(token)
            if sequence.num_generated == self.num_new_tokens[row_idx]:
                assert sequence.token_ids == [*sequence.request.prompt_ids, *self.generated[row_idx]], "tokens are lost"
                self.outcomes[row_idx, "finished"] += 1
                self.last_pages = self.scheduler.pages.num_needed(sequence.num_prompt)
                self.scheduler.finish(sequence)

    def run_out_of_memory(self, work: list[Work]) -> None:
        """See ``PagedEngine._recover``."""
        self.scheduler.put_back([item.sequence for item in work])
        self.events["out of memory"] += 1
        if self.scheduler.max_tokens > 4:
            self.scheduler.shrink(sum(item.num_tokens for item in work))

    def search(self, work: list[Work]) -> None:
        """See ``PagedEngine._recover``."""
        if len(work) == 1:
            self.outcomes[work[0].sequence.request.row_idx, "failed"] += 1
            self.scheduler.drop(work[0].sequence)
        else:
            self.scheduler.separate([item.sequence for item in work])
            self.events["separated"] += 1

    def check_end(self) -> None:
        """Check that nothing was lost, and that all memory is free but what may linger."""
        assert {row_idx for row_idx, _ in self.outcomes} == set(self.generated)
        assert len(self.outcomes) == len(self.generated) and set(self.outcomes.values()) == {1}
        pages = self.scheduler.pages
        assert pages.num_pages - pages.num_free <= self.last_pages
        assert not self.scheduler.running and self.scheduler.next_work() == []


def random_requests(rng: random.Random, num: int, max_prompt: int) -> list[Request]:
    """Return requests some of whose prompts begin alike, or are equal."""
    prompts: list[list[int]] = []
    for _ in range(num):
        beginning: list[int] = []
        if prompts and rng.random() < 0.6:
            other = rng.choice(prompts)
            beginning = other[: rng.randint(0, len(other))]
        rest = [rng.randrange(3) for _ in range(rng.randint(0, max_prompt - len(beginning)))]
        prompts.append([*beginning, *rest] or [0])
    return [request(row_idx, prompt) for row_idx, prompt in enumerate(prompts)]


WORKLOADS: dict[str, dict[str, Any]] = {
    "roomy": {"num_pages": 200, "max_tokens": 64},
    "chunks": {"num_pages": 200, "max_tokens": 9},
    "scarce": {"num_pages": 14, "max_tokens": 40},
    "tiny": {"num_pages": 8, "max_tokens": 8},
    "large_pages": {"num_pages": 12, "max_tokens": 50, "page_tokens": 16},
    "many_rows": {"num_pages": 60, "max_tokens": 40, "max_rows": 24},
    "unshared": {"num_pages": 20, "max_tokens": 30, "share_prefixes": False},
}


def simulate(rng: random.Random, name: str, **options: Any) -> Simulation:
    """Run one random workload, most of it submitted at first, the rest under way."""
    subject = scheduler(**{"page_tokens": rng.choice([4, 8]), "max_rows": 8, **WORKLOADS[name]})
    requests = random_requests(rng, num=20, max_prompt=40)
    num_new = {item.row_idx: rng.randint(1, 25) for item in requests}
    simulation = Simulation(subject, rng, num_new, **options)
    simulation.submit(requests[:13])
    for item in requests[13:]:
        if subject.num_pending:
            simulation.step()
        simulation.submit([item])
    simulation.run()
    simulation.check_end()
    return simulation


def preemptions(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often rows are taken out."""
    counts: Counter[str] = Counter()
    preempt = Scheduler._preempt

    def counted(self: Scheduler, victim: Sequence) -> None:
        counts["preempted"] += 1
        preempt(self, victim)

    monkeypatch.setattr(Scheduler, "_preempt", counted)
    return counts


@pytest.mark.parametrize("name", WORKLOADS)
def test_random_workloads_read_only_what_is_theirs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And end each row once; rows for which the whole cache is too small are reported, and no others."""
    events = preemptions(monkeypatch)
    for seed in range(15):
        simulation = simulate(random.Random(f"{name} {seed}"), name)
        pages = simulation.scheduler.pages
        for row_idx, num_new in simulation.num_new_tokens.items():
            is_unfit = (row_idx, "unfit") in simulation.outcomes
            num_cached = len(simulation.prompts[row_idx]) + num_new - 1  # nothing is computed of the last token
            assert is_unfit == (pages.num_needed(num_cached) > pages.num_pages)
            events["unfit"] += is_unfit
        events.update(simulation.events)
    expected = {
        "roomy": {"shared", "copied", "mixed"},
        "chunks": {"shared", "copied", "mixed", "chunks"},
        "scarce": {"shared", "copied", "mixed", "preempted"},
        "tiny": {"shared", "mixed", "chunks", "preempted", "unfit"},
        "large_pages": {"shared", "copied", "mixed", "preempted"},
        "many_rows": {"shared", "copied", "mixed", "preempted"},
        "unshared": {"mixed", "preempted"},
    }[name]
    assert all(events[event] > 5 for event in expected), events
    if name == "unshared":
        assert events["shared"] == events["copied"] == 0


@pytest.mark.parametrize("name", ["roomy", "scarce", "tiny", "many_rows"])
def test_steps_that_run_out_of_memory_lose_nothing(name: str) -> None:
    """Each is put back and made smaller, several times in a run."""
    events: Counter[str] = Counter()
    for seed in range(10):
        simulation = simulate(random.Random(f"{name} {seed}"), name, failure_rate=0.05)
        assert {what for _, what in simulation.outcomes} <= {"finished", "unfit"}
        events.update(simulation.events)
    assert events["out of memory"] > 30 and events["shared"] > 5


@pytest.mark.parametrize("name", ["roomy", "scarce", "chunks", "many_rows"])
def test_rows_on_which_the_model_fails_are_found_and_no_others(name: str) -> None:
    num_separated = 0
    for seed in range(10):
        rng = random.Random(f"{name} {seed}")
        poisoned = frozenset(rng.sample(range(20), rng.randint(1, 4)))
        simulation = simulate(rng, name, poisoned=poisoned)
        failed = {row_idx for row_idx, what in simulation.outcomes if what == "failed"}
        unfit = {row_idx for row_idx, what in simulation.outcomes if what == "unfit"}
        assert failed == poisoned - unfit
        num_separated += simulation.events["separated"]
    assert num_separated > 10


def test_groups_that_are_set_apart_run_by_themselves() -> None:
    """Halves of what failed, one after the other; those that wait come after them."""
    subject = scheduler(max_rows=5)
    simulation = Simulation(subject, random.Random(0), dict.fromkeys(range(9), 2))
    simulation.submit(request(row_idx, [row_idx] * 6) for row_idx in range(9))
    subject.separate([item.sequence for item in subject.next_work()])
    simulation.run()
    simulation.check_end()
    assert simulation.steps == [[0, 1, 2]] * 2 + [[3, 4]] * 2 + [[5, 6, 7, 8]] * 2


def test_a_group_that_is_set_apart_waits_for_those_that_run() -> None:
    """Rows that were no part of the failed step go on to their end first; nothing is admitted beside them."""
    subject = scheduler(max_rows=2)
    simulation = Simulation(subject, random.Random(0), dict.fromkeys(range(3), 3))
    simulation.submit([request(0, [0] * 8), request(1, [1] * 4), request(2, [2] * 2)])
    simulation.step()
    subject.separate(subject.running[1:])
    simulation.run()
    simulation.check_end()
    assert simulation.steps == [[0, 1], [0], [0], [1], [1], [2], [2], [2]]


def test_longest_rows_come_first_and_families_stay_together() -> None:
    prompts = {
        0: [9] * 3,
        1: [1, 1, 1, 1, 5],
        2: [7] * 6,
        3: [1, 1, 1, 1, 6, 6, 6],
        4: [2] * 5,
        5: [1, 1, 1, 1],
        6: [2] * 5,
    }
    order = [sequence.request.row_idx for sequence in in_order(running(*item) for item in prompts.items())]
    assert order == [3, 1, 5, 2, 4, 6, 0]


@pytest.mark.parametrize(("num_common", "is_family"), [(5, True), (4, False)])
def test_a_family_shares_half_of_its_longer_prompt(num_common: int, is_family: bool) -> None:
    """10 tokens and 8; between them in length stands a stranger."""
    sequences = [running(0, [1] * 10), running(1, [1] * num_common + [2] * (8 - num_common)), running(2, [3] * 9)]
    order = [sequence.request.row_idx for sequence in in_order(sequences)]
    assert order == ([0, 1, 2] if is_family else [0, 2, 1])


def test_the_order_does_not_depend_on_the_order_of_arrival() -> None:
    rng = random.Random(3)
    sequences = [Sequence.of(item) for item in random_requests(rng, 60, 20)]
    order = in_order(sequences)
    rng.shuffle(sequences)
    assert in_order(sequences) == order
    assert sorted(order, key=id) == sorted(sequences, key=id)


def test_samples_of_a_row_are_neighbors_and_share_their_prompt() -> None:
    """Its whole pages, and the rest of it by a copy; of each sample at least the last token is computed."""
    subject = scheduler(page_tokens=8)
    for sample_idx in range(3):
        subject.submit([Sequence.of(request(0, range(30), sample_idx))])
    subject.submit([running(1, [5] * 30)])
    work = subject.next_work()
    assert [(item.sequence.request.key, item.num_tokens) for item in work] == [
        *[((0, 1), 1), ((0, 2), 1)],
        *[((0, 0), 30), ((1, 0), 30)],
    ]
    assert subject.to_step(work).copies[:, 2].tolist() == [5, 5]


def test_a_copy_of_a_copy_is_taken_from_its_source() -> None:
    """All copies of a step happen at once: what is being copied to is no source yet."""
    subject = scheduler(page_tokens=8)
    for row_idx, prompt in enumerate([[*range(20), 90], [*range(21), 91], [*range(21), 92]]):
        subject.submit([running(row_idx, prompt)])
    step = subject.to_step(subject.next_work())
    (first, _, _), (second, _, _) = step.copies.tolist()
    assert first == second and first not in step.copies[:, 1]


def test_rows_that_are_put_back_come_first_and_keep_their_tokens() -> None:
    subject = scheduler(max_rows=3)
    simulation = Simulation(subject, random.Random(0), dict.fromkeys(range(4), 5))
    simulation.submit(request(row_idx, [row_idx] * 5) for row_idx in range(3))
    simulation.step()
    simulation.step()
    simulation.submit([request(3, [3] * 20)])
    first, second, third = subject.running
    subject.put_back([first, second])
    assert [sequence.slot for sequence in (first, second)] == [-1, -1]
    work = subject.next_work()
    assert [(item.sequence, item.num_tokens) for item in work] == [(third, 1), (first, 7), (second, 7)]
    assert first.token_ids == [0] * 5 + simulation.generated[0]


def test_the_row_admitted_last_makes_room_for_the_others() -> None:
    """6 pages of 4 tokens: three rows of 2 pages each, then the first one needs a third page."""
    subject = scheduler(num_pages=6, page_tokens=4)
    simulation = Simulation(subject, random.Random(0), dict.fromkeys(range(3), 4))
    simulation.submit(request(row_idx, [row_idx] * 7) for row_idx in range(3))
    for _ in range(3):
        simulation.step()
    assert simulation.steps == [[0, 1, 2], [0, 1, 2], [0, 1]]
    assert [sequence.request.row_idx for sequence in subject.running] == [0, 1]
    simulation.run()
    simulation.check_end()


def test_a_row_that_needs_more_than_the_whole_cache_is_reported_and_the_others_go_on() -> None:
    subject = scheduler(num_pages=5, page_tokens=4)
    simulation = Simulation(subject, random.Random(0), {0: 1, 1: 8, 2: 30, 3: 5})
    simulation.submit(request(row_idx, [row_idx] * length) for row_idx, length in enumerate([21, 13, 5, 4]))
    simulation.run()
    simulation.check_end()
    assert simulation.outcomes == Counter([(0, "unfit"), (1, "finished"), (2, "unfit"), (3, "finished")])
    assert len(simulation.generated[2]) == 20 - 5 + 1


def test_some_pages_are_kept_free_for_rows_that_run() -> None:
    """One for 8 rows: the ninth row of a page would fit, and the first row's next token would take it out again."""
    subject = scheduler(num_pages=9, page_tokens=4, max_rows=16, share_prefixes=False)
    for row_idx in range(16):
        subject.submit([running(row_idx, [row_idx] * 4)])
    assert len(subject.next_work()) == 8


def test_the_prompt_that_ended_last_lingers_for_its_neighbors() -> None:
    subject = scheduler(max_rows=1)
    simulation = Simulation(subject, random.Random(0), dict.fromkeys(range(3), 1))
    simulation.submit([request(0, range(20)), request(1, range(20)), request(2, [7] * 8)])
    work = [simulation.step() for _ in range(3)]
    assert [step[0].num_tokens for step in work] == [20, 4, 8]
    assert subject.pages.num_pages - subject.pages.num_free == 2


def test_a_prompt_that_lingers_makes_room_when_there_is_none() -> None:
    subject = scheduler(num_pages=5, max_rows=1)
    simulation = Simulation(subject, random.Random(0), dict.fromkeys(range(2), 1))
    simulation.submit([request(0, range(20)), request(1, range(50, 70))])
    simulation.run()
    simulation.check_end()
    assert simulation.outcomes == Counter([(0, "finished"), (1, "finished")])


def test_what_a_failed_row_left_is_given_to_nobody() -> None:
    subject = scheduler()
    subject.submit([running(0, range(20))])
    subject.submit([running(1, range(19))])
    (first, second) = (item.sequence for item in subject.next_work()[::-1])
    subject.drop(second)
    subject.drop(first)
    assert subject.pages.num_free == subject.pages.num_pages
    subject.submit([running(2, range(20))])
    assert [item.num_tokens for item in subject.next_work()] == [20]


def test_smaller_steps_after_a_shrink() -> None:
    subject = scheduler(max_rows=8, max_tokens=32)
    for row_idx in range(8):
        subject.submit([running(row_idx, [row_idx] * 4)])
    assert len(subject.next_work()) == 8
    subject.put_back(subject.running)
    for _ in range(3):
        subject.shrink(32)
    assert (subject.max_tokens, subject.max_rows) == (4, 4)
    assert [item.num_tokens for item in subject.next_work()] == [4]
    for _ in range(4):
        subject.shrink(4)
    assert (subject.max_tokens, subject.max_rows) == (1, 1)


def test_the_step_that_was_too_large_is_halved_not_the_limit() -> None:
    """But a few rows at a run's end do not make all later steps tiny at once."""
    subject = scheduler(max_rows=64, max_tokens=512)
    subject.shrink(64)
    assert (subject.max_tokens, subject.max_rows) == (32, 32)
    subject = scheduler(max_rows=64, max_tokens=512)
    subject.shrink(2)
    assert (subject.max_tokens, subject.max_rows) == (16, 16)


def test_rows_beyond_a_budget_that_was_shrunk_wait_for_their_turn() -> None:
    """They keep their slots and pages; none of them starves."""
    subject = scheduler(max_rows=8, max_tokens=32)
    simulation = Simulation(subject, random.Random(0), dict.fromkeys(range(8), 6))
    simulation.submit(request(row_idx, [row_idx] * 4) for row_idx in range(8))
    simulation.step()
    for _ in range(3):
        subject.shrink(32)
    assert len(subject.running) == 8
    simulation.run()
    simulation.check_end()


def test_a_step_is_never_smaller_than_the_slots() -> None:
    assert scheduler(max_rows=8, max_tokens=2).max_tokens == 8


def test_pending_are_all_that_are_not_finished_wherever_they_are() -> None:
    subject = scheduler(num_pages=6, page_tokens=4, max_rows=3)
    simulation = Simulation(subject, random.Random(0), dict.fromkeys(range(7), 2))
    simulation.submit(request(row_idx, [row_idx] * 8) for row_idx in range(5))
    assert subject.num_pending == 5
    work = subject.next_work()
    assert len(work) == 3 and subject.num_pending == 5
    simulation.submit([request(5, [5] * 100)])
    subject.put_back([work[2].sequence])
    assert subject.num_pending == 6
    subject.separate([item.sequence for item in work[:2]])
    assert subject.num_pending == 6
    simulation.step()
    assert subject.num_pending == 6
    simulation.run()
    simulation.check_end()
