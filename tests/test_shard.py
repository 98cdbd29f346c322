"""Shards: from the journals of earlier workers and new rows to a checked Parquet file under its final name."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.modes.completion import CompletionMode
from job.output.parts import writers
from job.output.parts.counts import METADATA_KEY, Counts
from job.output.parts.journal import Journal
from job.output.parts.part_schema import Columns
from job.output.parts.part_tables import ROWS_PER_GROUP, PartFormat
from job.output.parts.plan import Plan
from job.output.parts.retry_marks import Mark
from job.output.parts.shard import OpenShard
from job.records import Completion, Row, RowBlock, RowError
from tests.run_files import RunFiles

KEPT = pa.schema([("id", pa.string()), ("score", pa.decimal128(5, 2))])
PLAN = Plan(num_rows=25, rows_per_shard=10)
METADATA = {b"job.manifest": b"abc", b"huggingface": b"{}"}


@pytest.fixture
def paths(tmp_path: Path) -> RunFiles:
    paths = RunFiles(tmp_path / "out", PLAN.num_shards)
    paths.directory.prepare()
    return paths


def part_format(
    kept: pa.Schema = KEPT, *, include_prompt: bool = True, logprobs: bool = False, compression: str = "zstd"
) -> PartFormat:
    columns = Columns(modes=(CompletionMode(logprobs=logprobs),), include_prompt=include_prompt)
    return PartFormat.build(kept, columns, compression=compression, metadata=METADATA)


def open_shard(
    paths: RunFiles, shard_idx: int = 0, *, worker: str = "w", form: PartFormat | None = None, plan: Plan = PLAN
) -> OpenShard:
    return OpenShard(shard_idx, plan, paths.directory, form or part_format(), worker)


def completion(
    row_idx: int, text: str = "done", error: str | None = None, sample_idx: int = 0, **values: Any
) -> Completion:
    return Completion(
        row_idx=row_idx,
        sample_idx=sample_idx,
        prompt=f"p{row_idx}",
        completion=None if error else text,
        finish_reason=None if error else "stop",
        num_prompt_tokens=2,
        num_completion_tokens=3,
        error=None if error is None else RowError.parse(error),
        values=values,
    )


def block(rows: range, schema: pa.Schema = KEPT) -> RowBlock:
    columns = {"id": [f"id{idx}" for idx in rows], "score": [None] * len(rows)}
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    if not schema.names:
        table = pa.table({"x": list(rows)}).select([])
    return RowBlock(rows=[Row(row_idx=idx, values={}) for idx in rows], kept=table)


def finish(shard: OpenShard, schema: pa.Schema = KEPT) -> None:
    for row_idx in shard.rows:
        shard.add(completion(row_idx))
    shard.keep(block(shard.rows, schema))
    shard.finish()


def leave_journal(paths: RunFiles, worker: str, *rows: Completion, shard_idx: int = 0) -> None:
    journal = Journal(paths.store, paths.names.journal(shard_idx, worker), part_format().columns.journaled)
    for row in rows:
        journal.append(row)
    journal.close()


def test_rows_in_any_order_become_a_part_in_row_order(paths: RunFiles) -> None:
    shard = open_shard(paths, 1)
    for row_idx in [15, 10, 19, 11, 18, 12, 17, 13, 16, 14]:
        shard.add(completion(row_idx, f"c{row_idx}"))
    shard.keep(block(range(10, 13)))
    shard.keep(block(range(13, 20)))
    assert shard.is_complete
    shard.finish()
    table = pq.read_table(paths.part(1))
    assert table["row_idx"].to_pylist() == list(range(10, 20))
    assert table["completion"].to_pylist() == [f"c{idx}" for idx in range(10, 20)]
    assert table["id"].to_pylist() == [f"id{idx}" for idx in range(10, 20)]


def test_columns_are_in_the_order_of_the_contract_with_their_types(paths: RunFiles) -> None:
    finish(open_shard(paths))
    schema = pq.read_schema(paths.part(0))
    assert [(field.name, str(field.type)) for field in schema] == [
        ("row_idx", "int64"),
        ("sample_idx", "int32"),
        ("id", "string"),
        ("score", "decimal128(5, 2)"),
        ("prompt", "string"),
        ("completion", "string"),
        ("finish_reason", "string"),
        ("num_prompt_tokens", "int32"),
        ("num_completion_tokens", "int32"),
        ("error", "string"),
        ("error_kind", "string"),
    ]


def test_the_prompt_may_be_left_out(paths: RunFiles) -> None:
    finish(open_shard(paths, form=part_format(pa.schema([]), include_prompt=False)), pa.schema([]))
    assert pq.read_schema(paths.part(0)).names[:3] == ["row_idx", "sample_idx", "completion"]


def test_a_kept_column_may_be_called_prompt_if_ours_is_left_out(paths: RunFiles) -> None:
    kept = pa.schema([("prompt", pa.int64())])
    shard = open_shard(paths, 2, form=part_format(kept, include_prompt=False))
    for row_idx in shard.rows:
        shard.add(completion(row_idx))
    rows = [Row(row_idx=idx, values={}) for idx in shard.rows]
    shard.keep(RowBlock(rows=rows, kept=pa.table({"prompt": pa.array(range(5), pa.int64())})))
    shard.finish()
    assert pq.read_table(paths.part(2))["prompt"].to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("compression", "codec"), [("zstd", "ZSTD"), ("none", "UNCOMPRESSED")])
def test_parts_are_compressed_as_asked(paths: RunFiles, compression: str, codec: str) -> None:
    finish(open_shard(paths, form=part_format(compression=compression)))
    assert pq.read_metadata(paths.part(0)).row_group(0).column(0).compression == codec


def test_metadata_of_the_run_and_counts_of_the_part_are_in_the_footer(paths: RunFiles) -> None:
    shard = open_shard(paths, 2)
    for row_idx in shard.rows:
        shard.add(completion(row_idx, error="null_prompt: x" if row_idx == 22 else None))
    shard.keep(block(shard.rows))
    shard.finish()
    metadata = pq.read_metadata(paths.part(2)).metadata
    assert {key: metadata[key] for key in METADATA} == METADATA and METADATA_KEY in metadata
    counts = Counts.of_part(paths.store, paths.names.part(2))
    assert (counts.num_rows, counts.num_prompt_tokens, counts.num_completion_tokens) == (5, 10, 15)
    assert counts.errors == {"null_prompt": 1} and counts.error_rate == 0.2


def test_types_of_huggingface_survive(paths: RunFiles) -> None:
    features = datasets.Features({"y": datasets.ClassLabel(names=["no", "yes"])})
    kept = features.arrow_schema
    metadata = {b"huggingface": kept.metadata[b"huggingface"]}
    form = PartFormat.build(kept, Columns(modes=(), include_prompt=False), compression="zstd", metadata=metadata)
    shard = open_shard(paths, 2, form=form)
    for row_idx in shard.rows:
        shard.add(completion(row_idx))
    rows = [Row(row_idx=idx, values={}) for idx in shard.rows]
    shard.keep(RowBlock(rows=rows, kept=pa.table({"y": [0, 1, 0, 1, 1]}, schema=kept)))
    shard.finish()
    assert datasets.Features.from_arrow_schema(pq.read_schema(paths.part(2)))["y"] == features["y"]


def test_dictionary_columns_of_several_blocks_survive(paths: RunFiles) -> None:
    kept = pa.schema([("d", pa.dictionary(pa.int32(), pa.string()))])
    shard = open_shard(paths, 2, form=part_format(kept))
    for row_idx in shard.rows:
        shard.add(completion(row_idx))
    for rows, values in ((range(20, 22), ["a", "b"]), (range(22, 25), ["c", "a", None])):
        table = pa.table({"d": pa.array(values).dictionary_encode()})
        shard.keep(RowBlock(rows=[Row(row_idx=idx, values={}) for idx in rows], kept=table))
    shard.finish()
    table = pq.read_table(paths.part(2))
    assert table.schema.field("d").type == kept.field("d").type
    assert table["d"].to_pylist() == ["a", "b", "c", "a", None]


def test_row_groups_are_small_and_columns_in_step_across_them(paths: RunFiles) -> None:
    num_rows = 2 * ROWS_PER_GROUP + 1
    plan = Plan(num_rows=num_rows, rows_per_shard=num_rows)
    finish(open_shard(paths, plan=plan))
    assert pq.read_metadata(paths.part(0)).num_row_groups == 3
    table = pq.read_table(paths.part(0))
    assert table["id"].to_pylist() == [f"id{idx}" for idx in table["row_idx"].to_pylist()]


@pytest.mark.parametrize("num_samples", [1, 3])
def test_row_groups_end_before_they_are_large(
    paths: RunFiles, monkeypatch: pytest.MonkeyPatch, num_samples: int
) -> None:
    """With over 2 GiB in a thousand rows all was computed, and then no part could be written: offsets overflowed."""
    plan = Plan(num_rows=10, rows_per_shard=10, num_samples=num_samples)
    schema = pa.schema([("big", pa.binary()), ("word", pa.dictionary(pa.int32(), pa.string()))])
    sizes = [10, 10, 900, 10, 400, 400, 10, 10, 10, 10]
    values = [{"big": bytes([idx]) * size, "word": "same" * 1000} for idx, size in enumerate(sizes)]
    monkeypatch.setattr("job.output.parts.part_tables.BYTES_PER_GROUP", 800 * num_samples)
    opened = OpenShard(0, plan, paths.directory, part_format(schema), "worker")
    for row_idx, sample_idx in plan.keys(0):
        opened.add(completion(row_idx, sample_idx=sample_idx))
    rows = [Row(row_idx=idx, values={}) for idx in range(10)]
    for first, last in ((0, 3), (3, 10)):
        opened.keep(RowBlock(rows=rows[first:last], kept=pa.Table.from_pylist(values[first:last], schema)))
    opened.finish()
    table = pq.read_table(paths.part(0))
    assert table["big"].to_pylist() == [v["big"] for v in values for _ in range(num_samples)]
    assert table["word"].to_pylist() == ["same" * 1000] * 10 * num_samples
    footer = pq.read_metadata(paths.part(0))
    groups = [footer.row_group(idx).num_rows // num_samples for idx in range(footer.num_row_groups)]
    assert groups == [2, 1, 2, 5]


def test_a_shard_goes_on_where_several_journals_end(paths: RunFiles) -> None:
    leave_journal(paths, "a", completion(0, "a"), completion(3, "a"))
    leave_journal(paths, "b", completion(3, "b"), completion(7, "b"))
    leave_journal(paths, "other", completion(11, "x"), shard_idx=1)
    shard = open_shard(paths)
    assert [row_idx for row_idx in shard.rows if shard.has((row_idx, 0))] == [0, 3, 7] and shard.counts.num_rows == 3
    finish(shard)
    texts = pq.read_table(paths.part(0))["completion"].to_pylist()
    assert texts == ["a", "done", "done", "a", "done", "done", "done", "b", "done", "done"]
    assert paths.journal(1, "other").exists()


def test_a_second_completion_of_a_row_is_ignored(paths: RunFiles) -> None:
    shard = open_shard(paths)
    shard.add(completion(4, "first"))
    shard.add(completion(4, "second"))
    assert shard.counts.num_rows == 1
    finish(shard)
    assert pq.read_table(paths.part(0))["completion"].to_pylist()[4] == "first"


def test_rows_of_another_plan_in_a_journal_are_left_alone(paths: RunFiles) -> None:
    leave_journal(paths, "a", completion(10), completion(-1))
    assert open_shard(paths).counts.num_rows == 0


def test_a_shard_left_unfinished_keeps_its_rows_in_the_journal(paths: RunFiles) -> None:
    shard = open_shard(paths, worker="a")
    shard.add(completion(2))
    shard.close()
    assert not paths.part(0).exists()
    assert open_shard(paths, worker="b").has((2, 0))


@pytest.mark.parametrize("missing", ["completion", "kept"])
def test_a_hole_is_a_bug_and_never_a_part(paths: RunFiles, missing: str) -> None:
    """Nothing is renamed, and the journal keeps what there is."""
    shard = open_shard(paths)
    for row_idx in range(10 if missing == "kept" else 9):
        shard.add(completion(row_idx))
    shard.keep(block(range(9 if missing == "kept" else 10)))
    assert not shard.is_complete or shard.unread() == [range(9, 10)]
    with pytest.raises(AssertionError, match="shard 0"):
        shard.finish()
    shard.close()
    assert not paths.directory.done_shards()
    assert open_shard(paths, worker="b").counts.num_rows >= 9


def test_what_was_written_is_read_back_before_it_gets_its_name(
    paths: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = open_shard(paths)
    write = OpenShard._write
    monkeypatch.setattr(OpenShard, "_write", lambda self, file: (write(self, file), drop_last_row(file)))
    with pytest.raises(AssertionError, match="9 rows written, 10 in the plan"):
        finish(shard)
    assert not paths.directory.done_shards()


def drop_last_row(file: BinaryIO) -> None:
    table = pq.ParquetFile(file).read()
    file.seek(0)
    file.truncate()
    pq.write_table(table.slice(0, len(table) - 1), file)


def test_journals_and_temporary_files_go_once_the_part_is_there(paths: RunFiles) -> None:
    leave_journal(paths, "dead", completion(0))
    names = ("part-00000.parquet.dead.tmp", "part-00000.older.tmp", "part-00001.parquet.alive.tmp")
    for name in names:  # one is of an earlier version
        (paths.root / f".{name}").write_text("half")
    finish(open_shard(paths))
    assert sorted(path.name for path in paths.root.rglob("*") if path.is_file()) == [
        f".{names[2]}",
        paths.part(0).name,
    ]


def test_two_workers_may_finish_the_same_shard(paths: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster one removed the slower one's file as a leftover, and the slower one ended with No such file."""
    slow, fast = open_shard(paths, worker="slow"), open_shard(paths, worker="fast")
    verify = OpenShard._verify

    def overtaken(self: OpenShard, file: BinaryIO) -> None:
        if self is slow:
            finish(fast)
        verify(self, file)

    monkeypatch.setattr(OpenShard, "_verify", overtaken)
    finish(slow)
    assert pq.read_table(paths.part(0))["row_idx"].to_pylist() == list(range(10))
    assert not list(paths.root.glob(".part*")) and not paths.directory.journals(0)


def test_a_worker_that_was_overtaken_leaves_a_later_retry_alone(
    paths: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removed the marker of the retry and its journals, so that the errors stayed without a word."""
    slow = open_shard(paths, worker="slow")
    verify = OpenShard._verify

    def overtaken(self: OpenShard, file: BinaryIO) -> None:
        if self is slow:
            finish(open_shard(paths, worker="fast"))
            paths.store.replace(paths.names.retry(0), b"{}")
            leave_journal(paths, "retry", completion(0))
        verify(self, file)

    monkeypatch.setattr(OpenShard, "_verify", overtaken)
    paths.retry_dir.mkdir()
    finish(slow)
    assert paths.directory.shards_to_retry() == {0} and len(paths.directory.journals(0)) == 1


@pytest.mark.parametrize("step", [OpenShard.sync, OpenShard.close, finish], ids=["sync", "close", "finish"])
def test_a_journal_that_went_with_its_shard_is_no_failure(
    paths: RunFiles, monkeypatch: pytest.MonkeyPatch, step: Callable[[OpenShard], None]
) -> None:
    """Who finishes a shard removes the journals of those who helped; on NFS, closing them then says ESTALE."""
    shard = open_shard(paths, worker="helper")

    def stale(fd: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    for row_idx in shard.rows:
        shard.add(completion(row_idx))
    shard.sync()
    shard._journal.append(completion(0))
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", stale)
    with pytest.raises(FileNotFoundError):
        step(shard)  # there is no part: the file server has lost what nobody has finished
    monkeypatch.setattr(os, "fsync", fsync)
    finish(open_shard(paths, worker="holder"))
    monkeypatch.setattr(os, "fsync", stale)
    step(shard)
    assert pq.read_table(paths.part(0))["row_idx"].to_pylist() == list(range(10))


def test_only_what_nobody_can_be_writing_is_swept(paths: RunFiles) -> None:
    """At the end of a run: what processes were about to rename or remove when they were killed stayed for ever."""
    at_once = [
        *[paths.root / ".part-00000.parquet.w.tmp", paths.root / ".part-00000.w.tmp", paths.root / ".README.md.w.tmp"],
        *[paths.journal(0, "w"), paths.lease(0), paths.lease(0, 7), paths.clock("w")],
    ]
    once_old = [
        *[paths.root / f".{name}" for name in ("retry-00000.w.tmp", "manifest.json.w.tmp", "probe-w", "now-w-1")],
        *[paths.lease_dir / ".00000.w.tmp", paths.lease_dir / ".00000.taken-by-w", paths.metrics_dir / ".probe-w"],
    ]
    stays = [paths.metrics("w"), paths.root / ".gitattributes", paths.root / "manifest.json", paths.part(0)]
    for path in [*at_once, *once_old, *stays]:
        path.touch()

    def left() -> list[Path]:
        return sorted(path for path in paths.root.rglob("*") if path.is_file())

    paths.directory.sweep()
    paths.directory.discard_drafts()
    assert left() == sorted([*once_old, *stays])
    for path in [*once_old, *stays]:
        os.utime(path, (1, 1))
    paths.directory.sweep()
    assert left() == sorted(stays)


def test_a_vanished_directory_is_no_finished_shard(paths: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenShard, "_verify", lambda self, file: next(paths.root.glob(".part*")).unlink())
    with pytest.raises(FileNotFoundError):
        finish(open_shard(paths))


def test_a_dataset_without_rows_gives_an_empty_part_with_its_schema(paths: RunFiles) -> None:
    plan = Plan(num_rows=0, rows_per_shard=10)
    shard = open_shard(paths, plan=plan)
    assert shard.is_complete
    shard.finish()
    table = pq.read_table(paths.part(0))
    assert table.num_rows == 0 and table.schema.equals(part_format().schema)


@pytest.mark.parametrize(("num_rows", "expected"), [(0, [0]), (1, [1]), (10, [10]), (11, [10, 1]), (25, [10, 10, 5])])
def test_the_plan_covers_every_row_once(num_rows: int, expected: list[int]) -> None:
    plan = Plan(num_rows=num_rows, rows_per_shard=10)
    keys = [key for shard_idx in range(plan.num_shards) for key in plan.keys(shard_idx)]
    assert [len(plan.rows(shard_idx)) for shard_idx in range(plan.num_shards)] == expected
    assert keys == [(row_idx, 0) for row_idx in range(num_rows)]


SAMPLED = Plan(num_rows=25, rows_per_shard=10, num_samples=3)


def test_a_row_has_its_samples_in_order_and_its_kept_columns_with_each(paths: RunFiles) -> None:
    shard = open_shard(paths, 2, plan=SAMPLED)
    keys = [(row_idx, sample_idx) for row_idx in range(20, 25) for sample_idx in range(3)]
    for row_idx, sample_idx in random.Random(0).sample(keys, len(keys)):
        assert not shard.is_complete
        shard.add(completion(row_idx, f"c{row_idx}.{sample_idx}", sample_idx=sample_idx))
    shard.keep(block(range(20, 22)))
    shard.keep(block(range(22, 25)))
    assert shard.is_complete and shard.counts.num_rows == 15
    shard.finish()
    table = pq.read_table(paths.part(2))
    assert list(zip(table["row_idx"].to_pylist(), table["sample_idx"].to_pylist(), strict=True)) == keys
    assert table["completion"].to_pylist() == [f"c{row_idx}.{sample_idx}" for row_idx, sample_idx in keys]
    assert table["id"].to_pylist() == [f"id{row_idx}" for row_idx, _ in keys]


@pytest.mark.parametrize("num_samples", [2, 3, 7, ROWS_PER_GROUP - 1, ROWS_PER_GROUP + 1])
def test_kept_columns_stay_in_step_where_a_row_group_ends_within_a_row(paths: RunFiles, num_samples: int) -> None:
    plan = Plan(
        num_rows=2 * ROWS_PER_GROUP // num_samples + 13, rows_per_shard=2 * ROWS_PER_GROUP, num_samples=num_samples
    )
    shard = open_shard(paths, plan=plan)
    for row_idx, sample_idx in plan.keys(0):
        shard.add(completion(row_idx, sample_idx=sample_idx))
    for start in range(0, plan.num_rows, 9):
        shard.keep(block(shard.rows[start : start + 9]))
    shard.finish()
    table = pq.read_table(paths.part(0))
    assert len(table) == plan.num_completions == plan.num_rows * num_samples
    assert table["id"].to_pylist() == [f"id{row_idx}" for row_idx in table["row_idx"].to_pylist()]
    assert pq.read_metadata(paths.part(0)).num_row_groups > 2


def test_dictionary_columns_survive_their_samples(paths: RunFiles) -> None:
    kept = pa.schema([("d", pa.dictionary(pa.int32(), pa.string()))])
    shard = open_shard(paths, 2, form=part_format(kept), plan=SAMPLED)
    for row_idx, sample_idx in SAMPLED.keys(2):
        shard.add(completion(row_idx, sample_idx=sample_idx))
    for rows, values in ((range(20, 22), ["a", "b"]), (range(22, 25), ["c", "a", None])):
        table = pa.table({"d": pa.array(values).dictionary_encode()})
        shard.keep(RowBlock(rows=[Row(row_idx=idx, values={}) for idx in rows], kept=table))
    shard.finish()
    assert pq.read_table(paths.part(2))["d"].to_pylist() == [x for v in ["a", "b", "c", "a", None] for x in [v] * 3]


def test_a_shard_goes_on_in_the_middle_of_a_row(paths: RunFiles) -> None:
    leave_journal(paths, "a", completion(0, "a", sample_idx=2), completion(1, "a", sample_idx=0))
    leave_journal(paths, "b", completion(0, "b", sample_idx=2), completion(1, "b", sample_idx=3))
    shard = open_shard(paths, plan=SAMPLED)
    assert shard.counts.num_rows == 2, "sample 3 of another plan is left alone"
    assert [key for key in SAMPLED.keys(0) if shard.has(key)] == [(0, 2), (1, 0)]
    for row_idx, sample_idx in SAMPLED.keys(0):
        shard.add(completion(row_idx, "new", sample_idx=sample_idx))
    shard.keep(block(shard.rows))
    shard.finish()
    assert pq.read_table(paths.part(0))["completion"].to_pylist() == ["new", "new", "a", "a", *["new"] * 26]


def test_a_lacking_sample_is_a_hole(paths: RunFiles) -> None:
    shard = open_shard(paths, 2, plan=SAMPLED)
    for row_idx, sample_idx in [*SAMPLED.keys(2)][:-1]:
        shard.add(completion(row_idx, sample_idx=sample_idx))
    shard.keep(block(shard.rows))
    assert not shard.is_complete
    with pytest.raises(AssertionError, match="14 of 15 rows"):
        shard.finish()


def test_log_probabilities_are_columns_only_if_they_are_asked_for(paths: RunFiles) -> None:
    """A journal may hold them either way."""
    names = ["token_ids", "token_logprobs", "cumulative_logprob"]
    values = {"token_ids": [3, 4], "token_logprobs": [-0.5, -2.0], "cumulative_logprob": -2.5}
    for shard_idx, is_asked in ((0, True), (1, False)):
        shard = open_shard(paths, shard_idx, form=part_format(logprobs=is_asked))
        for row_idx in shard.rows:
            shard.add(completion(row_idx, error="x: y") if row_idx % 10 == 4 else completion(row_idx, **values))
        shard.keep(block(shard.rows))
        shard.finish()
    table = pq.read_table(paths.part(0))
    assert table.column_names[-4:] == ["error_kind", *names]
    assert [str(table.schema.field(name).type) for name in names] == [
        "list<element: int32>",
        "list<element: float>",
        "double",
    ]
    assert [table[name][3].as_py() for name in names] == [*values.values()]
    assert [table[name][4].as_py() for name in names] == [None] * 3
    assert pq.read_schema(paths.part(1)).names[-1] == "error_kind"


def test_a_kept_column_may_have_the_name_of_a_log_probability_that_is_not_asked_for(paths: RunFiles) -> None:
    kept = pa.schema([("token_ids", pa.string())])
    shard = open_shard(paths, 2, form=part_format(kept))
    for row_idx in shard.rows:
        shard.add(completion(row_idx, token_ids=[1], token_logprobs=[-1.0], cumulative_logprob=-1.0))
    rows = [Row(row_idx=idx, values={}) for idx in shard.rows]
    shard.keep(RowBlock(rows=rows, kept=pa.table({"token_ids": list("abcde")})))
    shard.finish()
    assert pq.read_table(paths.part(2))["token_ids"].to_pylist() == list("abcde")


def test_the_plan_has_every_sample_of_every_row_once() -> None:
    keys = [key for shard_idx in range(SAMPLED.num_shards) for key in SAMPLED.keys(shard_idx)]
    assert keys == [(row_idx, sample_idx) for row_idx in range(25) for sample_idx in range(3)]
    assert SAMPLED.num_completions == 75 and SAMPLED.num_shards == PLAN.num_shards
    assert list(SAMPLED.keys_of_row(4)) == [(4, 0), (4, 1), (4, 2)]


def test_a_damaged_journal_is_noted_once(paths: RunFiles) -> None:
    """Its rows after the damage are recomputed; whoever owns the disk should know of it."""
    journal = Journal(paths.store, paths.names.journal(0, "dead"), part_format().columns.journaled, sync_secs=0)
    for row_idx in range(3):
        journal.append(completion(row_idx, text=f"answer {row_idx}"))
        journal.sync()
    journal.close()
    content = paths.journal(0, "dead").read_bytes()
    paths.journal(0, "dead").write_bytes(content.replace(b"answer 1", b"answer 7"))
    leave_journal(paths, "other", completion(5))
    notes: list[str] = []
    shard = OpenShard(0, PLAN, paths.directory, part_format(), "w", notes.append)
    assert (shard.has((0, 0)), shard.has((1, 0)), shard.has((2, 0)), shard.has((5, 0))) == (True, False, False, True)
    shard.absorb()
    shard.absorb()
    (note,) = notes
    assert str(paths.journal(0, "dead")) in note and note.endswith("its later rows are recomputed")


def test_the_footer_says_which_worker_finished_each_row(paths: RunFiles) -> None:
    """Also after a retry, for the rows that it keeps; and it names no host, since parts may be published."""
    leave_journal(paths, "secret-host-7-00000a", completion(0), completion(3, error="null_prompt: x"))
    leave_journal(paths, "secret-host-7-00000a-1", completion(1))
    finish(open_shard(paths, worker="secret-host-9-00000b"))
    metadata = pq.read_metadata(paths.part(0)).metadata
    assert writers.from_metadata(metadata, 10) == ["7-00000a"] * 2 + ["9-00000b"] + ["7-00000a"] + ["9-00000b"] * 6
    assert b"secret" not in metadata[writers.METADATA_KEY]
    paths.retry(0).parent.mkdir()
    paths.retry(0).write_bytes(Mark(kinds=()).to_json())
    finish(open_shard(paths, worker="other-8-00000c"))
    found = writers.from_metadata(pq.read_metadata(paths.part(0)).metadata, 10)
    assert found == ["7-00000a"] * 2 + ["9-00000b", "8-00000c"] + ["9-00000b"] * 6
