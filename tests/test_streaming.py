"""Parquet on the Hub that is read in place: few requests, each column chunk once, and whatever the network does."""

import io
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.data.ahead import MAX_BLOCKS, Ahead
from job.data.formats.parquet import ParquetSource
from job.errors import JobError, UsageError
from job.records import Row, RowBlock
from job.remote.hub import pin
from tests.conftest import ANN, Result
from tests.hub import File, Hub

RunJob = Callable[..., Result]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed requests are repeated without waiting for long."""
    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 0.001)
    monkeypatch.setattr("job.remote.patience.MAX_PAUSE_SECS", 0.01)


def parquet(start: int, stop: int, *, group_rows: int = 1000, text_bytes: int = 20) -> bytes:
    """Return a file of rows, with two columns that nobody needs around the one with the prompts."""
    rows = range(start, stop)
    prompts = [f"{row:06} {(f'{row * 7919:x}' * text_bytes)[:text_bytes]}" for row in rows]
    big = [f"{row * 104729:x}" * 12 for row in rows]
    table = pa.table({"before": big, "prompt": prompts, "after": big, "id": [*rows]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group_rows, compression="none", use_dictionary=False)
    return buffer.getvalue()


def column_bytes(content: bytes, name: str = "prompt") -> int:
    metadata = pq.read_metadata(io.BytesIO(content))
    idx = metadata.schema.names.index(name)
    return sum(metadata.row_group(group).column(idx).total_compressed_size for group in range(metadata.num_row_groups))


def commit(hub: Hub, files: dict[str, bytes]) -> str:
    repo = hub.repos.get(("dataset", "acme/data")) or hub.create("dataset", "acme/data")
    return repo.commit({f"data/{name}.parquet": content for name, content in files.items()})


def opened(*names: str) -> ParquetSource:
    repository = pin("dataset", "acme/data", None)
    return ParquetSource.remote(repository, [f"data/{name}.parquet" for name in names])


def row_idx_of(source: ParquetSource, start: int, stop: int, columns: Sequence[str] = ("prompt",)) -> list[int]:
    rows = [row for block in source.read(start, stop, columns, ()) for row in block.rows]
    assert [int(row.values["prompt"][:6]) for row in rows] == [row.row_idx for row in rows]
    return [row.row_idx for row in rows]


def run_args(tiny_model: Any, output: Path) -> list[Any]:
    return [
        *("run", "--model", tiny_model(), "--no-chat", "--max-new-tokens", 2, "--engine", "fake"),
        *("--dataset", "acme/data", "--streaming", "--prompt-column", "prompt"),
        *("--output", output),
    ]


def output_of(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(output.rglob("part-*.parquet")))


@pytest.mark.parametrize("group_rows", [250, 5000])
def test_each_column_chunk_is_fetched_once(
    hub: Hub, run_job: RunJob, tiny_model: Any, tmp_path: Path, group_rows: int
) -> None:
    """Each shard of 500 rows fetched the chunk anew, with 5 MB of what follows: 66 times the column."""
    content = parquet(0, 5000, group_rows=group_rows, text_bytes=100)
    commit(hub, {"train": content})
    result = run_job(*run_args(tiny_model, tmp_path / "out"), "--rows-per-shard", 500)
    assert result.exit_code == 0, result.stderr
    assert output_of(tmp_path / "out")["row_idx"].to_pylist() == [*range(5000)]
    sent = sum(request.sent for request in hub.requests("GET .*(parquet|cdn)"))
    assert column_bytes(content) < sent < 1.2 * column_bytes(content)


def test_only_the_row_groups_and_columns_that_are_needed_are_fetched(hub: Hub) -> None:
    content = parquet(0, 1000, group_rows=100)
    commit(hub, {"train": content})
    source = opened("train")
    assert source.is_remote and source.num_rows == 1000
    hub.log.clear()
    assert row_idx_of(source, 350, 620) == [*range(350, 620)]
    sent = sum(request.sent for request in hub.requests("GET /cdn"))
    assert sent == pytest.approx(0.4 * column_bytes(content), rel=0.05)
    assert row_idx_of(source, 310, 640) == [*range(310, 640)]
    assert sum(request.sent for request in hub.requests("GET /cdn")) == sent, "they are kept"


def test_what_is_kept_is_limited_in_bytes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.data.formats.parquet_files.KEPT_BYTES", 10_000)
    commit(hub, {"train": parquet(0, 1000, group_rows=100)})
    source = opened("train")
    for _ in range(2):
        hub.log.clear()
        assert row_idx_of(source, 0, 1000) == [*range(1000)]
        assert len(hub.requests("GET /cdn")) == 10


def test_long_chunks_are_fetched_in_pieces(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.data.formats.parquet_files.PIECE_BYTES", 5000)
    commit(hub, {"train": parquet(0, 1000)})
    source = opened("train")
    hub.log.clear()
    assert row_idx_of(source, 0, 1000) == [*range(1000)]
    assert len(hub.requests("GET /cdn")) > 4 and max(request.sent for request in hub.requests("GET /cdn")) == 5000


def test_a_footer_longer_than_the_first_request_is_read(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.data.formats.parquet_files.TAIL_BYTES", 100)
    commit(hub, {"train": parquet(0, 1000)})
    assert row_idx_of(opened("train"), 0, 1000) == [*range(1000)]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100, b"x" * 90 + b"\xff\xff\xff\x7fPAR1"])
def test_a_file_that_is_not_parquet_is_named(hub: Hub, content: bytes) -> None:
    commit(hub, {"a": parquet(0, 10), "b": content})
    with pytest.raises(pa.ArrowInvalid) as caught:
        opened("a", "b")
    assert "acme/data/data/b.parquet" in caught.value.__notes__


def test_many_files_are_opened_and_read_at_the_same_time(hub: Hub) -> None:
    """200 files took 94 s at 100 ms a request: 829 requests, one after the other."""
    names = [f"{idx:03}" for idx in range(64)]
    commit(hub, {name: parquet(200 * idx, 200 * idx + 200) for idx, name in enumerate(names)})
    hub.fault(match="GET /cdn", stall_secs=0.05)
    assert row_idx_of(opened(*names), 0, 12_800) == [*range(12_800)]
    spans = sorted((item.time, item.time + item.secs) for item in hub.requests("GET /cdn"))
    assert len(hub.requests("GET .*resolve")) == 64 and len(spans) == 128
    for half in (spans[:64], spans[64:]):  # the footers, and the rows
        assert max(sum(start <= now < end for start, end in half) for now, _ in half) >= 4, "at the same time"


def test_a_small_file_is_one_request(hub: Hub) -> None:
    commit(hub, {"a": parquet(0, 10), "b": parquet(10, 20)})
    assert row_idx_of(opened("a", "b"), 0, 20) == [*range(20)]
    assert len(hub.requests("GET /cdn")) == 2


def test_the_token_goes_to_the_hub_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("dataset", "acme/data", private=True, readers=("ann",))
    monkeypatch.setenv("HF_TOKEN", ANN)
    commit(hub, {"train": parquet(0, 10)})
    assert row_idx_of(opened("train"), 0, 10) == [*range(10)]
    assert {request.user for request in hub.requests("resolve")} == {"ann"}
    assert {request.user for request in hub.requests("/cdn/")} == {None}


FAULTS: dict[str, dict[str, Any]] = {
    "gone": {"reset_after": -1},
    "reset": {"reset_after": 20},
    "503": {"status": 503},
    "429": {"status": 429, "headers": {"Retry-After": "0"}},
    "stalled": {"stall_secs": 0.5, "times": 2},
    "expired": {"status": 403},
}


@pytest.mark.parametrize("place", ["/cdn/", "resolve"])
@pytest.mark.parametrize("fault", [*FAULTS])
def test_trouble_of_the_network_costs_no_row(hub: Hub, monkeypatch: pytest.MonkeyPatch, fault: str, place: str) -> None:
    """Resets and stalls were tracebacks, and a single 403 of the CDN, whose addresses expire, ended the run."""
    if (fault, place) == ("expired", "resolve"):
        return  # of the Hub itself, a 403 is meant
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    commit(hub, {name: parquet(500 * idx, 500 * idx + 500, group_rows=100) for idx, name in enumerate("ab")})
    hub.fault(**{"match": place, "skip": 1, "times": 12, **FAULTS[fault]})
    assert row_idx_of(opened("a", "b"), 0, 1000) == [*range(1000)]


def test_an_address_that_has_expired_is_asked_for_again(hub: Hub) -> None:
    commit(hub, {"train": parquet(0, 1000, group_rows=100)})
    source = opened("train")
    hub.fault(match="/cdn/", status=403, times=1)
    assert row_idx_of(source, 0, 100) == [*range(100)]
    assert len(hub.requests("resolve")) == 2


def test_who_may_no_longer_read_is_told_at_once(hub: Hub) -> None:
    commit(hub, {"train": parquet(0, 10)})
    hub.fault(match="resolve", status=403)
    with pytest.raises(UsageError, match="--dataset acme/data"):
        opened("train")
    assert len(hub.requests("resolve")) == 1


def test_a_branch_that_moves_changes_nothing(hub: Hub) -> None:
    commit(hub, {"train": parquet(0, 1000)})
    source = opened("train")
    commit(hub, {"train": parquet(5000, 5010)})
    assert row_idx_of(source, 0, 1000) == [*range(1000)]


def test_an_answer_without_the_range_is_refused(hub: Hub) -> None:
    commit(hub, {"train": parquet(0, 10)})
    hub.fault(match="/cdn/", status=200)
    with pytest.raises(JobError, match=r"data/train.parquet cannot be read in place.*answered 200"):
        opened("train")


def test_other_files_than_parquet_are_fetched_with_a_note(
    hub: Hub, run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """JSON lines were streamed: rows were counted by the card, and slices of helpers read from the start."""
    lines = "".join(json.dumps({"prompt": f"p{row}"}) + "\n" for row in range(5))
    hub.create("dataset", "acme/data").commit({"train.jsonl": lines.encode()})
    result = run_job(*run_args(tiny_model, tmp_path / "out"))
    assert result.exit_code == 0 and output_of(tmp_path / "out").num_rows == 5
    assert "--streaming is for Parquet, so what is needed of acme/data is fetched" in result.stderr


def test_what_was_fetched_before_is_read_from_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(hub, {"a": parquet(0, 10), "b": parquet(10, 20)})
    repository = pin("dataset", "acme/data", None)
    repository.fetch(["data/a.parquet"])
    hub.log.clear()
    assert row_idx_of(opened("a", "b"), 0, 20) == [*range(20)]
    assert len(hub.requests("GET /cdn")) == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert row_idx_of(opened("a"), 0, 10) == [*range(10)]
    with pytest.raises(UsageError, match=r"data/b\.parquet of acme/data is not in the cache"):
        opened("a", "b")


def block(row_idx: int, text: str = "") -> RowBlock:
    return RowBlock(rows=[Row(row_idx=row_idx, values={"prompt": text})], kept=pa.table({"": pa.nulls(1)}).select([]))


def take(ahead: Ahead) -> int:
    """Return the next row once it is there."""
    assert ahead.wait(10)
    taken = next(ahead)
    assert taken is not None
    return taken.rows[0].row_idx


def test_a_thread_reads_ahead_within_limits() -> None:
    read: list[int] = []

    def blocks() -> Iterator[RowBlock]:
        for row_idx in range(100):
            read.append(row_idx)
            yield block(row_idx)

    ahead = Ahead(blocks())
    assert [take(ahead) for _ in range(50)] == [*range(50)]
    assert len(read) <= 50 + MAX_BLOCKS + 1
    assert [take(ahead) for _ in range(50)] == [*range(50, 100)]
    assert ahead.wait(10)
    with pytest.raises(StopIteration):
        next(ahead)


def test_long_rows_are_not_read_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.data.ahead.MAX_BYTES", 1000)
    read: list[int] = []

    def blocks() -> Iterator[RowBlock]:
        for row_idx in range(100):
            read.append(row_idx)
            yield block(row_idx, "x" * 600)

    ahead = Ahead(blocks())
    for row_idx in range(20):
        assert take(ahead) == row_idx and len(read) <= row_idx + 3


def test_rows_before_an_error_are_given_first() -> None:
    def blocks() -> Iterator[RowBlock]:
        yield block(0)
        raise JobError("no more")

    ahead = Ahead(blocks())
    assert take(ahead) == 0 and ahead.wait(10)
    for _ in range(2):
        with pytest.raises(JobError, match="no more"):
            next(ahead)


def test_a_pass_that_nobody_needs_ends() -> None:
    ended = threading.Event()

    def blocks() -> Iterator[RowBlock]:
        try:
            yield from (block(row_idx) for row_idx in range(1000))
        finally:
            ended.set()

    ahead = Ahead(blocks())
    assert take(ahead) == 0
    ahead.close()
    assert ended.wait(10)


class Stalled:
    """A hub that sends the rows of the first files and then nothing."""

    def __init__(self, hub: Hub, num_files: int) -> None:
        self.hub = hub
        files = {f"{idx}": parquet(500 * idx, 500 * idx + 500) for idx in range(num_files)}
        commit(hub, files)
        first = File(files["0"], large=True).sha256
        self.fault = hub.fault(match=rf"/cdn/(?!{first})", skip=num_files - 1, stall_secs=12)  # not the footers

    def until(self, output: Path, what: Callable[[Path], bool], then: Callable[[], object]) -> None:
        """Do something once the output is as far."""

        def watch() -> None:
            while not what(output):
                time.sleep(0.02)
            then()

        threading.Thread(target=watch, daemon=True).start()


def has_rows(output: Path) -> bool:
    return any(path.stat().st_size for place in ("data/part-*", "journal/*") for path in output.glob(place))


@pytest.mark.parametrize("rows_per_shard", [500, 1500])
def test_a_stop_is_heard_while_the_hub_is_silent(
    hub: Hub, run_job: RunJob, tiny_model: Any, tmp_path: Path, rows_per_shard: int
) -> None:
    """It was heard up to 85 s later, or the run ended with 1. The next start only does what is left: it also reads the
    columns that are kept of the rows that are finished.
    """
    stalled = Stalled(hub, 3)
    args = [*run_args(tiny_model, tmp_path / "out"), "--keep-columns", "id", "--rows-per-shard", rows_per_shard]
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    stalled.until(tmp_path / "out", has_rows, stop)
    result = run_job(*args)
    assert time.monotonic() - stopped[0] < 8, "it waited for the Hub, which answers after 12 s"
    assert result.exit_code == 75, result.stderr
    hub.heal()
    commit(hub, {"0": parquet(7000, 7500)})
    again = run_job(*args)
    assert again.exit_code == 0 and re.search("(480|500) of 1,500 rows already done", again.stderr)
    table = output_of(tmp_path / "out")
    assert table["row_idx"].to_pylist() == table["id"].to_pylist() == [*range(1500)]
    assert table["error"].null_count == 1500


def test_a_hub_that_stays_away_ends_the_run_with_1_and_keeps_what_is_finished(
    hub: Hub, run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """It was a traceback after 23 to 94 s."""
    fault = Stalled(hub, 3).fault
    fault.status, fault.stall_secs = 503, 0
    args = [*run_args(tiny_model, tmp_path / "out"), "--hub-timeout", "0.2", "--rows-per-shard", 500]
    result = run_job(*args)
    assert result.exit_code == 1  # run_job raises what would be a traceback
    assert "The Hub (acme/data)" in result.stderr and "503" in result.stderr
    assert [path.name for path in tmp_path.glob("out/data/part-*")] == ["part-00000.parquet"]
    hub.heal()
    assert run_job(*args).exit_code == 0
    table = output_of(tmp_path / "out")
    assert table["row_idx"].to_pylist() == [*range(1500)] and table["error"].null_count == 1500
