"""Random histories of trouble on the way to the Hub while rows are streamed: the table is the undisturbed one.

Each history starts workers and, while they work, lets the hub fail, hang, cut connections or be gone, moves the
branches of the dataset and of the model, and kills workers. Whatever happens, a launch ends with one of a few exit
codes, and once the hub is healthy the run ends with the table of the commit that it began with.
"""

import io
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.parts import plan, shard
from tests.conftest import Result
from tests.hub import Hub, Repo
from tests.test_resume import exit_codes, start_workers
from tests.test_run import read_output

NUM_HISTORIES = int(os.environ.get("JOB_HUB_HISTORIES", "1"))
"""Set it to 100 for a thorough run, which takes half an hour."""

NUM_ROWS, NUM_FILES = 150, 3


def parquet(file_idx: int, version: int) -> bytes:
    stream = io.BytesIO()
    rows = range(file_idx * NUM_ROWS // NUM_FILES, (file_idx + 1) * NUM_ROWS // NUM_FILES)
    table = pa.table(
        {
            "id": list(rows),
            "prompt": [f"{row} of version {version}" if row % 7 else None for row in rows],
            "junk": [os.urandom(500) for _ in rows],
        }
    )
    pq.write_table(table, stream, row_group_size=20, compression="none", use_dictionary=False)
    return stream.getvalue()


def files(version: int) -> dict[str, bytes]:
    return {f"data/train-{idx:05}-of-{NUM_FILES:05}.parquet": parquet(idx, version) for idx in range(NUM_FILES)}


class Trouble:
    """What goes wrong with a hub, at random."""

    def __init__(self, hub: Hub, dataset: Repo, model: Repo, rng: random.Random) -> None:
        self._hub, self._dataset, self._model, self._rng = hub, dataset, model, rng
        self._kinds = [self.status, self.resets, self.stalls, self.slow, self.outage, self.move, self.edit]

    def strike(self) -> None:
        self._rng.choice(self._kinds)()

    def status(self) -> None:
        self._hub.fault(match="GET|HEAD", status=self._rng.choice((429, 500, 502, 503, 504)), times=self._num())

    def resets(self) -> None:
        after = self._rng.choice((-1, 0, 10, 300, 5_000))
        self._hub.fault(match="GET", reset_after=after, skip=self._rng.randrange(3), times=self._num())

    def stalls(self) -> None:
        self._hub.fault(match=self._rng.choice(("GET", "HEAD", "cdn")), stall_secs=0.5, times=self._rng.randint(1, 3))

    def slow(self) -> None:
        self._hub.fault(match="cdn", bytes_per_sec=200_000, times=self._num())

    def outage(self) -> None:
        # Not ``Hub.stop``: the workers, which are forked, keep its socket open.
        self._hub.fault(match=".", reset_after=-1, secs=self._rng.uniform(0.1, 1.5))

    def move(self) -> None:
        self._dataset.commit(files(self._rng.randrange(1, 9)), title=str(self._rng.random()))
        self._model.commit({"config.json": self._model.commits[self._model.refs["main"]]["config.json"]})

    def edit(self) -> None:
        self._dataset.commit({"README.md": b"# version %d\n" % self._rng.randrange(99)}, title=str(self._rng.random()))

    def _num(self) -> int:
        return self._rng.randint(1, 12)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let pauses and timeouts be short, in this process and in the workers that are forked from it."""
    from huggingface_hub import constants

    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 0.01)
    monkeypatch.setattr("job.remote.patience.MAX_PAUSE_SECS", 0.1)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.3)
    monkeypatch.setattr(shard, "JOURNAL_SYNC_SECS", 0.0)
    monkeypatch.setattr(plan, "MIN_SLICE_ROWS", 8)
    monkeypatch.setattr("job.run.open_shards.IDLE_SECS", 0.02)
    monkeypatch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, rows_per_step=4))
    yield


def expected_tables(
    run_job: Callable[..., Result], dataset: Repo, args: list[str], tmp_path: Path
) -> dict[str, pa.Table]:
    """Return the undisturbed table of each set of files that the branch has had, by commit."""
    tables: dict[tuple[str, ...], pa.Table] = {}
    by_commit = {}
    for commit, tree in dataset.commits.items():
        key = tuple(file.oid for path, file in sorted(tree.items()) if path.endswith(".parquet"))
        if not key:
            continue
        if key not in tables:
            output = tmp_path / f"undisturbed-{commit[:8]}"
            assert run_job(*args, "--output", output, "--dataset-revision", commit).exit_code == 0
            tables[key] = read_output(output)
        by_commit[commit] = tables[key]
    return by_commit


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "fetching"])
@pytest.mark.parametrize("seed", range(NUM_HISTORIES))
def test_whatever_happens_to_the_hub_the_table_is_the_undisturbed_one(
    hub: Hub,
    quick: None,
    tiny_model: Callable[..., Path],
    run_job: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    streaming: bool,
    seed: int,
) -> None:
    rng = random.Random(f"{seed} {streaming}")
    model = hub.create("model", "acme/tiny")
    model.commit({path.name: path for path in tiny_model().iterdir()})
    dataset = hub.create("dataset", "acme/data")
    dataset.commit(files(0))
    args = ["run", "--engine", "fake", "--model", "acme/tiny", "--dataset", "acme/data", "--max-error-rate", "1"]
    args += ["--keep-columns", "id", "--rows-per-shard", "25", *(["--streaming"] if streaming else [])]
    output, log = tmp_path / "out", tmp_path / "log"
    disturbed = [*args, "--output", str(output), "--hub-timeout", "1"]
    trouble = Trouble(hub, dataset, model, rng)
    for _ in range(rng.randint(2, 4)):
        monkeypatch.setenv("JOB_FAKE_STEP_SECS", str(rng.choice((0.0, 0.01, 0.03))))
        workers = start_workers(rng.randint(1, 2), disturbed, log)
        end = time.monotonic() + rng.uniform(0.3, 1.5)
        while time.monotonic() < end and any(worker.is_alive() for worker in workers):
            trouble.strike()
            time.sleep(rng.uniform(0.0, 0.3))
        for worker in workers:
            if rng.random() < 0.6 and worker.is_alive():
                os.kill(worker.pid, rng.choice((signal.SIGKILL, signal.SIGTERM)))
        codes = exit_codes(workers)
        assert {*codes} <= {0, 1, 75, -signal.SIGKILL, -signal.SIGTERM}, log.read_text()
        hub.heal()
    monkeypatch.setenv("JOB_FAKE_STEP_SECS", "0")
    assert exit_codes(start_workers(1, disturbed, log)) == [0], log.read_text()
    assert "Traceback" not in log.read_text()
    about = json.loads((output / "manifest.json").read_text())["about"]
    tables = expected_tables(run_job, dataset, args, tmp_path)
    assert read_output(output).equals(tables[about["dataset_commit"]])
