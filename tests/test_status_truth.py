"""The status of a run equals a count over its parts and journals, whatever has happened to its workers.

The count here is made without the code under test: it reads the files with pyarrow.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.engine.fake import STEP_SECS
from job.output.looking.found import FoundRun, find_run
from job.output.looking.retries import mark_for_retry, read_counts
from job.output.parts.part_schema import Columns
from job.output.parts.part_tables import PartFormat
from job.output.parts.retry_marks import Mark
from job.output.parts.shard import OpenShard
from job.output.store.local import LocalStore
from job.records import Completion, RowError, SampleKey
from job.run.status import Inspection
from tests.conftest import Result, finish, start_processes
from tests.run_files import files_of
from tests.test_run import write_jsonl

NUM_HISTORIES = int(os.environ.get("JOB_STATUS_HISTORIES", "100"))
KINDS = ("engine_error", "null_prompt")


def count(root: Path) -> dict[str, Any]:
    """Count what is finished of a run."""
    paths, plan = files_of(root), find_run(root).plan
    rows: dict[SampleKey, str | None] = {}
    num_part_rows = 0
    for shard_idx in range(plan.num_shards):
        part, marker = paths.part(shard_idx), paths.retry(shard_idx)
        in_part, is_final = {}, False
        if part.exists():
            in_part, is_final = dict(part_rows(part)), not marker.exists()
            if not is_final:
                kinds = json.loads(marker.read_text())["kinds"] or KINDS
                in_part = {key: kind for key, kind in in_part.items() if kind not in kinds}
        num_part_rows += len(in_part)
        in_journals: dict[SampleKey, str | None] = {}
        if not is_final:
            for journal in sorted(paths.journal_dir.glob(f"{paths.names.number(shard_idx)}.*.arrows")):
                in_journals = {**dict(journal_rows(journal)), **in_journals}
        rows |= {**in_journals, **in_part}
    return {
        "done": len(rows),
        "in_parts": num_part_rows,
        "errors": dict(Counter(kind for kind in rows.values() if kind is not None)),
    }


def part_rows(part: Path) -> Iterator[tuple[SampleKey, str | None]]:
    return rows_of(pq.read_table(part, columns=["row_idx", "sample_idx", "error_kind"]))


def journal_rows(journal: Path) -> Iterator[tuple[SampleKey, str | None]]:
    """Yield the rows up to the torn end of a journal."""
    with contextlib.suppress(pa.ArrowException, OSError), pa.ipc.open_stream(journal.read_bytes()) as reader:
        for batch in reader:
            yield from rows_of(batch)


def rows_of(table: Any) -> Iterator[tuple[SampleKey, str | None]]:
    for row in table.to_pylist():
        yield (row["row_idx"], row["sample_idx"]), row["error_kind"]


def seen_by(inspection: Inspection) -> dict[str, Any]:
    values: Any = inspection.look().to_dict()
    return {
        "done": values["rows"]["done"],
        "in_parts": values["rows"]["in_parts"],
        "errors": values["errors"]["by_kind"],
    }


class Killed(BaseException):
    """The process ends here."""


class Worker:
    """A worker that holds or helps with one shard, as ``OpenShard`` sees it."""

    def __init__(self, run: FoundRun, shard_idx: int, name: str, rng: random.Random) -> None:
        columns = Columns.of(run.manifest)
        form = PartFormat.build(pa.schema([]), columns, compression="none", metadata={})
        self.shard_idx, self._rng = shard_idx, rng
        self._todo = list(run.plan.keys(shard_idx))
        rng.shuffle(self._todo)
        self.shard = OpenShard(shard_idx, run.plan, run.directory, form, name)

    def work(self) -> None:
        for _ in range(self._rng.randint(1, 6)):
            if self._todo:
                self.shard.add(completion(self._todo.pop(), self._rng))
        if self._rng.random() < 0.7:
            self.shard.sync()


def completion(key: SampleKey, rng: random.Random) -> Completion:
    kind = rng.choice(KINDS) if rng.random() < 0.3 else None
    return Completion(
        row_idx=key[0],
        sample_idx=key[1],
        prompt="p" * rng.randint(0, 9),
        completion=None if kind else "c",
        finish_reason=None if kind else rng.choice(("stop", "length")),
        num_prompt_tokens=1,
        num_completion_tokens=0 if kind else 2,
        error=RowError(kind, "why") if kind else None,
    )


class History:
    """A random life of a run: workers come, help, are killed at any write, stop and come back; errors are retried."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.rng = root, random.Random(seed)
        self.workers: list[Worker] = []
        self._num_names = 0
        self._run = find_run(root)
        self._kill_in: int | None = None
        delete = LocalStore.delete

        def delete_or_die(store: LocalStore, name: str) -> None:
            if self._kill_in is not None:
                self._kill_in -= 1
                if self._kill_in < 0:
                    raise Killed
            delete(store, name)

        self.delete = delete_or_die

    def step(self) -> None:
        act = self.rng.choices([self.start, self.work, self.stop, self.kill, self.retry], [3, 6, 1, 1, 1])[0]
        act()

    def start(self) -> None:
        """Open a shard that nobody holds, or help with one: two workers never compute the same row here."""
        shard_idx = self.rng.randrange(self._run.plan.num_shards)
        if self._run.directory.is_done(shard_idx) or any(w.shard_idx == shard_idx for w in self.workers):
            return
        self._num_names += 1
        self.workers.append(Worker(self._run, shard_idx, f"w-{self._num_names}", self.rng))
        if self.rng.random() < 0.3:
            helper = Worker(self._run, shard_idx, f"h-{self._num_names}", self.rng)
            helper._todo = helper._todo[: len(helper._todo) // 2]
            self.workers[-1]._todo = [key for key in self.workers[-1]._todo if key not in helper._todo]
            helper.work()
            helper.shard.close()

    def work(self) -> None:
        if not self.workers:
            return
        worker = self.rng.choice(self.workers)
        worker.work()
        worker.shard.absorb()
        if worker.shard.is_complete:
            self.workers.remove(worker)
            self._kill_in = self.rng.choice([None, None, 0, 1, 2])
            with contextlib.suppress(Killed):
                worker.shard.finish()
            self._kill_in = None

    def stop(self) -> None:
        if self.workers:
            self.workers.pop(self.rng.randrange(len(self.workers))).shard.close()

    def kill(self) -> None:
        """Lose what is not synced, and perhaps leave half of the last write."""
        if not self.workers:
            return
        worker = self.workers.pop(self.rng.randrange(len(self.workers)))
        journal = self.root / worker.shard._journal.name
        if journal.exists() and self.rng.random() < 0.5:
            with journal.open("ab") as file:
                file.write(self.rng.choice([b"\0" * 9, b"\xff\xff\xff\xff\x10", b"\xff\xff\xff\xff\x10\0\0\0\1"]))

    def retry(self) -> None:
        if not self.workers:
            kinds = self.rng.choice([(), ("engine_error",)])
            mark_for_retry(self._run, read_counts(self._run.directory), Mark(kinds=kinds))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any) -> Any:
    """Return the contents of a real manifest."""
    from click.testing import CliRunner

    from job.cli import main

    root = tmp_path_factory.mktemp("run")
    data = write_jsonl(root / "d.jsonl", [{"prompt": "a"}])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", root / "out"]
    assert CliRunner().invoke(main, [str(arg) for arg in args]).exit_code == 0
    return json.loads((root / "out/manifest.json").read_text())


def new_run(root: Path, manifest: Any, rng: random.Random) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    identity = manifest["identity"]
    plan = {"num_rows": rng.randint(1, 40), "rows_per_shard": rng.randint(1, 15)}
    sampling = {**identity.get("sampling", {}), "num_samples": rng.choice([1, 1, 3])}
    content = {**manifest, "identity": {**identity, "plan": plan, "sampling": sampling}}
    (root / "manifest.json").write_text(json.dumps(content))
    find_run(root).directory.prepare()


@pytest.mark.parametrize("tenth", [0, *(pytest.param(tenth, marks=pytest.mark.slow) for tenth in range(1, 10))])
def test_status_equals_a_count_of_parts_and_journals(
    tenth: int, manifest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In random histories: after every step, for a status that has watched from the start, and for a new one."""
    for seed in range(tenth, NUM_HISTORIES, 10):
        new_run(tmp_path / "out", manifest, random.Random(seed))
        history, watching = History(tmp_path / "out", seed), Inspection(tmp_path / "out")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            patch.setattr(LocalStore, "delete", history.delete)
            for step in range(25):
                history.step()
                if history.rng.random() < 0.3:
                    expected = count(history.root)
                    assert seen_by(watching) == expected, (seed, step)
        for worker in history.workers:
            worker.shard.close()
        expected = count(history.root)
        assert seen_by(watching) == seen_by(Inspection(history.root)) == expected, seed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_status_of_real_processes_that_end_in_the_middle(
    tiny_model: Any, run_job: Callable[..., Result], tmp_path: Path, number: signal.Signals
) -> None:
    """At any moment while a process lives, and after it has been stopped or killed; then the run is completed."""
    rows = [{"prompt": f"question {i}?" if i % 10 else None} for i in range(300)]
    data, out = write_jsonl(tmp_path / "d.jsonl", rows), tmp_path / "out"
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", out]
    args += ["--rows-per-shard", 70, "--max-error-rate", 1]
    (process,) = start_processes(["-m", "job", *args], env={STEP_SECS: "1.5"})
    deadline = time.monotonic() + 120
    while not (out / "manifest.json").exists() or not count(out)["done"]:
        assert process.poll() is None and time.monotonic() < deadline
        before = count(out)["done"] if (out / "manifest.json").exists() else 0
        if before:
            assert before <= seen_by(Inspection(out))["done"] <= count(out)["done"]
    process.send_signal(number)
    finish([process])
    expected = count(out)
    assert 0 < expected["done"] < 300 and seen_by(Inspection(out)) == expected
    result = run_job(*args)
    assert result.exit_code == 0, result.stderr
    assert f", {expected['done']} of 300 rows already done; loading " in result.stderr
    assert seen_by(Inspection(out)) == {"done": 300, "in_parts": 300, "errors": {"null_prompt": 30}}
