"""Rows in flight: killed at any token, a row goes on there and comes out as it would have."""

import errno
import itertools
import os
import random
import re
import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from job.config import EngineConfig
from job.engine.logits.endings import partial_of
from job.engine.protocol import Engine
from job.engine.reasoned_scores import ReasonedScores
from job.engine.static.engine import StaticEngine
from job.output.parts import partials, shard
from job.output.parts.partials import PartialLog, PartialLogs
from job.output.parts.plan import Plan
from job.output.store.files import FileAppender
from job.output.store.names import SCATTERED
from job.records import Generation, Partial, PartialKey, Request, SampleKey
from job.run import in_flight
from job.run.in_flight import InFlight
from job.run.scattered_in_flight import ScatteredInFlight
from job.tasks import Generate
from tests import test_mixed_tasks, test_reasoned_choices, test_reasoning
from tests.conftest import Result
from tests.run_files import RunFiles
from tests.serving import MODES, Observed, Served, ask, finish, generate, load, make_engine, make_prompts, serve
from tests.test_resume import start_workers
from tests.test_run import read_output, write_jsonl


@pytest.fixture
def paths(tmp_path: Path) -> RunFiles:
    paths = RunFiles(tmp_path / "out", 2)
    paths.directory.prepare()
    return paths


@pytest.fixture
def served(tiny_model: Callable[..., Path]) -> Served:
    """Return a llama whose rows end early, at different times."""
    served = serve(tiny_model())
    return replace(served, model=replace(served.model, eos_token_ids=(1, *range(140, 170))))


@pytest.fixture
def run_args(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Return the command line of a run of long rows on a real model."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "many words " * (idx % 3 + 1)} for idx in range(9)])
    run = ["run", "--model", str(tiny_model()), "--dataset", str(data)]
    shape = ["--rows-per-shard", "5", "--max-batch-rows", "4"]
    sampled = ["--max-new-tokens", "150", "--temperature", "1", "--no-chat"]
    return lambda output, *options: [*run, *shape, *sampled, "--output", str(output), *options]


def piece(key: PartialKey, start: int, *token_ids: int) -> Partial:
    row_idx, sample_idx, attempt = key
    logprobs, tops = [-float(token) for token in token_ids], b"".join(bytes([token] * 3) for token in token_ids)
    return Partial(
        row_idx=row_idx,
        sample_idx=sample_idx,
        attempt=attempt,
        start=start,
        token_ids=token_ids,
        logprobs=logprobs,
        tops=tops,
    )


def whole(found: Partial) -> Partial:
    return replace(found, token_ids=tuple(found.token_ids), logprobs=list(found.logprobs), tops=bytes(found.tops))


def answer(generation: Generation) -> Any:
    """Return all of a generation, rounded: a prefix is computed in other steps than its tokens were."""
    if generation.top_ids is None:
        return test_mixed_tasks.answer(generation)
    values = [pytest.approx(value, abs=1e-4) for value in np.ravel(generation.top_logprobs)]
    return (*test_mixed_tasks.answer(generation), generation.top_ids.tolist(), values)


class Lives:
    """Computes requests in engines that are killed after a few steps, and counts what was done twice."""

    def __init__(self, paths: RunFiles, make: Callable[[], Engine], rng: random.Random) -> None:
        self._paths, self._make, self._rng = paths, make, rng
        self.num_lives = self.num_resumed = 0

    def finish(self, requests: list[Request]) -> list[Generation]:
        done: dict[SampleKey, Generation] = {}
        while len(done) < len(requests):
            self.num_lives += 1
            self._live([request for request in requests if request.key not in done], done)
        return [done[request.key] for request in requests]

    def _live(self, requests: list[Request], done: dict[SampleKey, Generation]) -> None:
        """Go on with what the lives before have left, for a few steps."""
        left = PartialLogs(self._paths.directory, 0).read("")
        log = PartialLog(self._paths.directory, 0, f"worker-{self.num_lives}")
        engine = self._make()
        for request in requests:
            begun = left.get((*request.key, request.attempt))
            self.num_resumed += begun is not None
            engine.submit(replace(request, begun=begun))
        for _ in range(self._rng.randint(1, 3 + 2 * self.num_lives)):  # longer and longer, so that all comes to an end
            for generation in engine.step():
                done[generation.request.key] = replace(generation, request=replace(generation.request, begun=None))
                log.forget((*generation.request.key, 0))
            if self._rng.random() < 0.7:
                log.append(engine.partials(log.known))


def all_requests(rng: random.Random) -> list[Request]:
    """Return requests of all kinds, each with a row of its own, some of which have a random choice of tops."""
    own = generate(temperature=1.0, top_k=9, seed=8, num_top_logprobs=3, ignore_eos=True, max_new_tokens=20)
    choices = test_reasoned_choices.asked(9)
    kinds = [
        *test_mixed_tasks.requests(),
        *test_reasoning.mixed_requests(),
        *(ask(prompt, own) for prompt in make_prompts()[:4]),
        *(ask(prompt, choices) for prompt in make_prompts()[:4]),
    ]
    rng.shuffle(kinds)
    return [replace(request, row_idx=idx, sample_idx=0) for idx, request in enumerate(kinds)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("mode", ["all rows", "few pages and chunks"])
def test_whatever_is_asked_is_gone_on_with(served: Served, paths: RunFiles, mode: str, overlap: bool) -> None:
    """Draws, penalties, log probabilities, grammars, stop texts, budgets of reasoning, choices behind reasoning."""
    rng = random.Random(f"{mode} {overlap}")
    requests = all_requests(rng)
    shape = {**MODES[mode], "config": {**MODES[mode]["config"], "overlap": overlap}}

    def make() -> Engine:
        return ReasonedScores(make_engine(served, **shape))

    expected = finish(make(), requests)
    lives = Lives(paths, make, rng)
    found = lives.finish(requests)
    assert [answer(generation) for generation in found] == [answer(generation) for generation in expected]
    assert lives.num_lives > 3 and lives.num_resumed > 20


def test_a_larger_limit_goes_on_wherever_a_row_was_cut(served: Served) -> None:
    """Also where the end of its reasoning was being forced, which its tokens do not show."""
    requests = [each for each in all_requests(random.Random(0)) if isinstance(each.task, Generate)]
    requests = [each for each in requests if each.task.params.max_new_tokens > 12]
    expected = finish(make_engine(served), requests)
    num_resumed = 0
    for most in range(1, 13):
        cut = finish(make_engine(served), [limited(request, most) for request in requests])
        begun = [partial_of(generation) for generation in cut]
        found = finish(make_engine(served), [replace(a, begun=b) for a, b in zip(requests, begun, strict=True)])
        assert [answer(generation) for generation in found] == [answer(generation) for generation in expected]
        are_guided = (each.task.grammar is not None and each.task.reasoning is not None for each in requests)
        num_resumed += sum(part is not None for part, is_guided in zip(begun, are_guided, strict=True) if is_guided)
    assert num_resumed > 50


def limited(request: Request, most: int) -> Request:
    assert isinstance(request.task, Generate)
    params = request.task.params
    params = replace(params, max_new_tokens=most, min_new_tokens=min(most, params.min_new_tokens))
    return replace(request, task=replace(request.task, params=params))


def test_a_static_batch_goes_on_where_a_stop_left_it(tiny_model: Callable[..., Path]) -> None:
    """Rows of different lengths, with all that a request may ask: what they have is part of the next prompts."""
    requests = [each for each in all_requests(random.Random(1)) if isinstance(each.task, Generate)]
    model, replica = load(tiny_model())
    model = replace(model, eos_token_ids=(1, *range(140, 170)))

    def make(should_stop: Callable[[], bool] = lambda: False) -> Engine:
        return ReasonedScores(StaticEngine(model, EngineConfig(max_batch_rows=64), replica, should_stop))

    expected = finish(make(), requests)
    begun: dict[PartialKey, Partial] = {}
    for num_steps in (4, 3, 5):
        calls = itertools.count()
        engine = make(lambda calls=calls, most=num_steps: next(calls) > most)
        for request in requests:
            engine.submit(replace(request, begun=begun.get(request.partial_key)))
        engine.step()
        left = engine.partials({})
        assert all(partial.key not in begun or partial.end > begun[partial.key].end for partial in left)
        begun |= {partial.key: partial for partial in left}
        [rest] = [each for each in engine.partials({left[0].key: 2}) if each.key == left[0].key]
        assert (rest.start, list(rest.token_ids)) == (2, list(left[0].token_ids[2:]))
    assert sum(len(partial.token_ids) for partial in begun.values()) > 100
    found = finish(make(), [replace(request, begun=begun.get(request.partial_key)) for request in requests])
    assert [answer(generation) for generation in found] == [answer(generation) for generation in expected]


def test_what_was_generated_is_not_generated_again(served: Served, observed: Observed) -> None:
    request = ask(make_prompts()[5], generate(max_new_tokens=40, ignore_eos=True))
    [expected] = finish(make_engine(served), [request])
    observed.num_tokens = 0
    begun = Partial(row_idx=0, sample_idx=0, token_ids=expected.token_ids[:30])
    engine = make_engine(served)
    [found] = finish(engine, [replace(request, begun=begun)])
    assert found.token_ids == expected.token_ids
    assert observed.num_tokens == len(request.prompt_ids) + 39
    engine.submit(replace(request, begun=begun))
    engine.step()
    [partial] = engine.partials({(0, 0, 0): 30})
    assert (partial.start, list(partial.token_ids)) == (30, list(expected.token_ids[30:31]))


def test_pieces_are_added_up(paths: RunFiles) -> None:
    """In one log; another one's longer piece counts instead, and the own log does not."""
    one, other = (7, 0, 0), (8, 1, 2)
    log = PartialLog(paths.directory, 0, "a")
    log.append([piece(one, 0, 1, 2), piece(other, 0, 5)])
    logs = PartialLogs(paths.directory, 0)
    assert [whole(found) for found in logs.read("").values()] == [piece(one, 0, 1, 2), piece(other, 0, 5)]
    log.append([piece(one, 2, 3)])
    log.append([])
    log.append([piece(one, 3, 4, 6)])
    assert log.known == {one: 5, other: 1}
    assert whole(logs.read("")[one]) == piece(one, 0, 1, 2, 3, 4, 6)
    second = PartialLog(paths.directory, 0, "b")
    second.append([piece(one, 0, 1), piece(other, 0, 5, 6)])
    found = logs.read("")
    assert whole(found[one]) == piece(one, 0, 1, 2, 3, 4, 6) and whole(found[other]) == piece(other, 0, 5, 6)
    assert whole(logs.read(second.name)[other]) == piece(other, 0, 5)
    assert PartialLogs(paths.directory, 1).read("") == {}


def test_a_piece_that_was_written_twice_counts_once(paths: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that fails is repeated, with what has come since: the first bytes may be there or not."""
    key = (7, 0, 0)
    log = PartialLog(paths.directory, 0, "a")
    log.append([piece(key, 0, 1)])
    log._log.append(partials.to_batch([piece(key, 1, 2)]))  # written, but not known to be
    log.append([piece(key, 1, 2, 3, 4)])
    assert whole(PartialLogs(paths.directory, 0).read("")[key]) == piece(key, 0, 1, 2, 3, 4)
    log._log.append(partials.to_batch([piece(key, 9, 9)]))  # after a gap
    assert whole(PartialLogs(paths.directory, 0).read("")[key]) == piece(key, 0, 1, 2, 3, 4)


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_damaged_end_is_left_out(paths: RunFiles, tmp_path: Path, is_cut: bool) -> None:
    key = (7, 0, 0)
    log = PartialLog(paths.directory, 0, "a")
    log.append([piece(key, 0, 1, 2)])
    path = tmp_path / "out" / log.name
    whole_bytes = path.stat().st_size
    log.append([piece(key, 2, 3)])
    data = bytearray(path.read_bytes())
    if is_cut:
        del data[-40:]
    else:
        data[whole_bytes + 300] ^= 1
    path.write_bytes(data)
    assert whole(PartialLogs(paths.directory, 0).read("")[key]) == piece(key, 0, 1, 2)


def test_logs_do_not_grow_with_rows_that_are_done(paths: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partials, "SPARE_BYTES", 4000)
    log = PartialLog(paths.directory, 0, "a")
    largest = 0
    for row in range(200):
        log.append([piece((row, 0, 0), 0, *range(50))])
        log.append([piece((row, 0, 0), 50, *range(50))])
        if row:
            log.forget((row - 1, 0, 0))
        if log.is_mostly_garbage:
            log.replace([piece((row, 0, 0), 0, *range(50), *range(50))])
        names = paths.directory.partials(0)
        largest = max(largest, sum((paths.root / name).stat().st_size for name in names))
    assert len(names) == 1 and largest < 12_000
    assert whole(PartialLogs(paths.directory, 0).read("")[199, 0, 0]) == piece((199, 0, 0), 0, *range(50), *range(50))


class Rows:
    """An engine whose rows each have ten tokens more whenever it is asked."""

    num_pending = 1

    def __init__(self, num_rows: int, begun: Mapping[PartialKey, Partial] | None = None) -> None:
        keys = [(row_idx, 0, 0) for row_idx in range(num_rows)]
        self.tokens = {key: list(begun[key].token_ids) if begun else [] for key in keys}

    def partials(self, known: Mapping[PartialKey, int]) -> list[Partial]:
        for tokens in self.tokens.values():
            tokens += [7] * 10
        return [piece(key, known.get(key, 0), *ids[known.get(key, 0) :]) for key, ids in self.tokens.items()]


@pytest.fixture
def make_worker(paths: RunFiles) -> Callable[..., InFlight]:
    """Return a function that makes what a worker keeps of a shard of which it has claimed rows."""

    def make(worker_id: str, done: Collection[SampleKey] = (), note: Any = str, **more: Any) -> InFlight:
        made = InFlight(paths.directory, Plan(num_rows=1000, rows_per_shard=1000), worker_id, note, is_on=True, **more)
        shard = {"shard_idx": 0, "changes": {}, "directory": paths.directory}
        made.look(SimpleNamespace(**shard, has=done.__contains__, sync=lambda: None))
        return made

    return make


@pytest.mark.parametrize(("changes", "is_resumed"), [({}, True), ({"temperature": 0.9}, False)], ids=str)
def test_a_retry_with_other_options_does_not_go_on_with_what_a_random_order_has_left(
    paths: RunFiles, changes: dict[str, float], is_resumed: bool
) -> None:
    """That log has rows of all shards, and stays until all are done: a row went on with tokens of the run's options."""
    log = PartialLog(paths.directory, SCATTERED, "host-1-0a1b2c")
    log.append([Partial(row_idx=3, sample_idx=0, token_ids=[7, 8])])
    log.close()
    worker = InFlight(paths.directory, Plan(num_rows=1000, rows_per_shard=1000), "me", str, is_on=True)
    worker.look(SimpleNamespace(shard_idx=0, changes=changes, directory=paths.directory))
    request = Request(row_idx=3, sample_idx=0, prompt_ids=[1], task=generate(max_new_tokens=9))
    assert (worker.resumed(request).begun is not None) == is_resumed


def test_launches_that_are_killed_again_and_again_leave_one_log(
    paths: RunFiles, make_worker: Callable[..., InFlight]
) -> None:
    """Each takes over what dead ones have left, also of rows that it has not got to. There was one more for each."""
    begun = None
    for launch in range(200):
        make_worker(f"worker-{launch}", lease_timeout_secs=0).keep(Rows(20 if launch % 2 else 40, begun))
        assert len(paths.directory.partials(0)) == 1
        begun = PartialLogs(paths.directory, 0).read("")
    assert len(begun[0, 0, 0].token_ids) == 2000 and len(begun[39, 0, 0].token_ids) == 1000
    make_worker("last", done=[(30, 0)], lease_timeout_secs=0).keep(Rows(0))
    assert begun.keys() - PartialLogs(paths.directory, 0).read("").keys() == {(30, 0, 0)}


def test_launches_in_random_order_that_are_killed_again_and_again_leave_one_log(paths: RunFiles) -> None:
    """That log is of all shards, so no holder of a shard takes it over: there was one more for each launch."""
    plan, begun = Plan(num_rows=1000, rows_per_shard=500), None
    for launch in range(30):
        dead = ScatteredInFlight(paths.directory, plan, f"w{launch}", str, is_on=True, lease_timeout_secs=0)
        dead.keep(Rows(20 if launch % 2 else 40, begun))
        dead.take_over_if_due(lambda key: key == (30, 0))
        assert len(paths.directory.partials(SCATTERED)) == 1
        begun = {**PartialLogs(paths.directory, SCATTERED).read("")}
        assert launch == 0 or launch % 2 == 0 or (30, 0, 0) not in begun
        begun.setdefault((30, 0, 0), piece((30, 0, 0), 0))
    assert len(begun[0, 0, 0].token_ids) == 300 and len(begun[39, 0, 0].token_ids) == 150
    left = paths.directory.partials(SCATTERED)
    late = ScatteredInFlight(paths.directory, plan, "late", str, is_on=True, lease_timeout_secs=0)
    late.settle_all()
    late.take_over_if_due(lambda key: False)
    assert paths.directory.partials(SCATTERED) == left, "once shards are written, the sweep at the end removes it"


def test_rows_that_go_on_one_after_the_other_are_told_together(
    paths: RunFiles, make_worker: Callable[..., InFlight]
) -> None:
    """There was a line every 2 seconds, for as long as rows of an earlier launch began."""
    make_worker("dead").keep(Rows(5))
    notes: list[str] = []
    worker = make_worker("next", note=notes.append)
    for row_idx in range(5):
        worker.resumed(Request(row_idx=row_idx, sample_idx=0, prompt_ids=[1], task=generate(max_new_tokens=900)))
        worker.keep(Rows(0))
    worker.close()
    assert [note.partition(" where")[0] for note in notes] == ["1 row goes on", "4 rows go on"]


def test_only_the_holder_of_a_shard_takes_over_and_only_what_dead_workers_left(
    paths: RunFiles, make_worker: Callable[..., InFlight]
) -> None:
    make_worker("first").keep(Rows(3))
    make_worker("holder").keep(Rows(3))
    make_worker("helper", holds=lambda _: False, lease_timeout_secs=0).keep(Rows(3))
    assert len(paths.directory.partials(0)) == 3


def test_rows_of_a_shard_that_another_worker_has_finished_leave_no_log(
    paths: RunFiles, make_worker: Callable[..., InFlight]
) -> None:
    """They are still in the engine, and their log would be there when the run has long been done."""
    worker, rows = make_worker("slow"), Rows(3)
    worker.keep(rows)
    worker.leave(0)
    for name in paths.directory.partials(0):
        paths.store.delete(name)
    worker.keep(rows)
    assert paths.directory.partials(0) == []


def test_a_log_that_is_gone_is_not_begun_again(
    paths: RunFiles, make_worker: Callable[..., InFlight], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system, a worker that was away learns from it that its shard has been taken over."""
    notes: list[str] = []
    worker, rows = make_worker("slow", note=notes.append), Rows(3)
    worker.keep(rows)

    def fail(self: FileAppender, data: bytes, *, durable: bool) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "journal/x")

    with monkeypatch.context() as patched:
        patched.setattr(FileAppender, "append", fail)
        worker.keep(rows)
    worker.keep(rows)
    assert [len(found.token_ids) for found in PartialLogs(paths.directory, 0).read("").values()] == [10] * 3
    assert notes == []


def test_on_a_full_disk_tokens_wait_once_for_room(
    paths: RunFiles, make_worker: Callable[..., InFlight], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt added all of them again to what waits in memory."""
    notes: list[str] = []
    worker, rows = make_worker("full", note=notes.append), Rows(3)
    worker.keep(rows)

    def fail(self: FileAppender, data: bytes, *, durable: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "journal/x")

    with monkeypatch.context() as patched:
        patched.setattr(FileAppender, "append", fail)
        for _ in range(50):
            worker.keep(rows)
    worker.keep(rows)
    [name] = paths.directory.partials(0)
    lengths = [len(found.token_ids) for found in PartialLogs(paths.directory, 0).read("").values()]
    assert lengths == [520] * 3 and len(notes) == 1
    assert (paths.root / name).stat().st_size < 100_000


def test_what_waits_to_go_on_stays_when_a_log_begins_again(paths: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that have lost their pages are not running; and the old log goes even if the new one failed at first."""
    log = PartialLog(paths.directory, 0, "a")
    log.append([piece((idx, 0, 0), 0, 1, 2, 3) for idx in range(3)])
    log.forget((1, 0, 0))

    def fail(self: FileAppender, data: bytes, *, durable: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "journal/x")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(FileAppender, "append", fail)
        log.replace([piece((0, 0, 0), 0, 1, 2, 3, 4)])
    log.append([piece((0, 0, 0), 4, 5)])
    found = PartialLogs(paths.directory, 0).read("")
    assert {key[0]: list(partial.token_ids) for key, partial in found.items()} == {0: [1, 2, 3, 4, 5], 2: [1, 2, 3]}
    assert len(paths.directory.partials(0)) == 1


def kill_when_begun(args: list[str], output: Path, log: Path) -> None:
    """Start a run in a process of its own, and kill it once several rows have begun."""
    (worker,) = start_workers(1, args, log)
    while not any(path.stat().st_size > 8000 for path in output.glob("journal/*.partials")):
        assert worker.is_alive(), log.read_text()
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()


@pytest.mark.parametrize("orders", [("dataset",) * 3, ("random", "dataset", "random")])
def test_a_killed_run_goes_on_within_its_rows(
    run_job: Callable[..., Result],
    run_args: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    orders: tuple[str, ...],
) -> None:
    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(in_flight, "JOURNAL_SYNC_SECS", 0.0)
    output, log = tmp_path / "out", tmp_path / "log"
    options = ["--ignore-eos", "--logprobs"]
    assert run_job(*run_args(tmp_path / "undisturbed", *options)).exit_code == 0
    for order in orders[:2]:
        kill_when_begun(run_args(output, *options, "--order", order), output, log)
    done = run_job(*run_args(output, *options, "--order", orders[2]))
    assert done.exit_code == 0
    assert re.search(r"\d rows go on where an earlier launch had stopped: \d+ tokens are not", done.stderr)
    found, expected = (read_output(path).to_pylist() for path in (output, tmp_path / "undisturbed"))
    for left, right in zip(found, expected, strict=True):
        assert left.pop("token_logprobs") == pytest.approx(right.pop("token_logprobs"), abs=1e-4)
        assert left == right
    assert not list(output.glob("journal/*")), "what is left of rows in flight goes with the journals"


@pytest.mark.parametrize("options", [["--logprobs"], ["--top-logprobs", "3", "--stop", "e"]])
def test_a_retry_with_more_tokens_goes_on_where_rows_were_cut(
    run_job: Callable[..., Result], run_args: Callable[..., list[str]], tmp_path: Path, options: list[str]
) -> None:
    """Twice, with other rows' tokens kept beside them; with another temperature, rows begin again."""
    output, limits = tmp_path / "out", {most: ["--max-new-tokens", str(most)] for most in (20, 60, 90)}
    args = run_args(output, *options, *limits[20])
    assert run_job(*args).exit_code == 0
    for most, num_before in ((60, 20), (90, 60)):
        assert "will be recomputed" in run_job("retry", output, "--cut", *limits[most]).stdout
        done = run_job(*args)
        assert done.exit_code == 0
        num_rows, num_tokens = map(int, re.search(r"(\d+) rows? goe?s? on .*: (\d+) tokens", done.stderr).groups())
        assert num_rows >= 2 and num_tokens == num_rows * num_before
    assert run_job(*run_args(tmp_path / "whole", *options, *limits[90])).exit_code == 0
    found, expected = (read_output(path).to_pylist() for path in (output, tmp_path / "whole"))
    for left, right in zip(found, expected, strict=True):
        for name in ("token_logprobs", "top_logprobs", "cumulative_logprob"):
            flat = [np.ravel(row.pop(name, None) or 0.0) for row in (left, right)]
            assert flat[0] == pytest.approx(flat[1], abs=1e-3 if name == "top_logprobs" else 1e-4)
        assert left == right
    assert run_job("retry", output, "--cut", "--max-new-tokens", "95", "--temperature", "0.5").exit_code == 0
    assert "goes on" not in (again := run_job(*args).stderr) and "go on" not in again
    assert run_job("verify", output).exit_code == 0


def test_a_retry_goes_on_only_with_what_was_drawn_as_the_run_draws(
    run_job: Callable[..., Result], run_args: Callable[..., list[str]], tmp_path: Path
) -> None:
    """A retry with another temperature had cut rows again, and the next one went on with those tokens."""
    output, shape, limit = tmp_path / "out", ["--limit", "3", "--ignore-eos"], "--max-new-tokens"
    args = run_args(output, *shape, limit, "20")
    assert run_job(*args).exit_code == 0
    for options in ([limit, "25", "--temperature", "0.3"], [limit, "60"]):
        assert run_job("retry", output, "--cut", *options).exit_code == 0
        done = run_job(*args)
        assert done.exit_code == 0
    assert "3 rows go on where an earlier launch had stopped: 60 tokens" in done.stderr, "those that the run has drawn"
    assert run_job(*run_args(tmp_path / "whole", *shape, limit, "60")).exit_code == 0
    assert read_output(output).equals(read_output(tmp_path / "whole"))


def test_without_it_nothing_is_kept(
    run_job: Callable[..., Result],
    run_args: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: PartialLog, pieces: Any) -> None:
        raise AssertionError("it was turned off")

    monkeypatch.setattr(in_flight, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(PartialLog, "append", fail)
    done = run_job(*run_args(tmp_path / "out", "--no-journal-in-flight", "--limit", "2"))
    assert done.exit_code == 0, done.stderr


def test_a_full_disk_costs_only_what_rows_in_flight_have(
    run_job: Callable[..., Result],
    run_args: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is told once, and the run goes on: its finished rows may still find room."""

    def fail(self: PartialLog, pieces: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "journal/x")

    monkeypatch.setattr(in_flight, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(PartialLog, "append", fail)
    done = run_job(*run_args(tmp_path / "out", "--limit", "2"))
    assert done.exit_code == 0
    told = (
        "what rows in flight have so far cannot be kept, so a kill would lose it: journal/x: No space left on device\n"
    )
    assert done.stderr.count(told) == 1
