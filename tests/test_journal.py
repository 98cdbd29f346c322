"""The journal: what was synced comes back; what a crash or a bad disk left behind never becomes a wrong row."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from job.modes.completion import CompletionMode
from job.output.parts import journal as journal_module
from job.output.parts.journal import Journal, JournalReader
from job.output.parts.part_schema import Columns
from job.output.parts.rows import from_batch, to_batch
from job.output.store.local import LocalStore
from job.records import Completion, RowError

END = b"\xff\xff\xff\xff\0\0\0\0"
"""Of an Arrow stream that was closed."""

SCHEMA = Columns(modes=(CompletionMode(logprobs=True),)).journaled


def completion(row_idx: int) -> Completion:
    failed = row_idx % 3 == 0
    return Completion(
        row_idx=row_idx,
        sample_idx=row_idx % 2,
        prompt=None if row_idx == 1 else f"prompt {row_idx} é",
        completion=None if failed else "x" * row_idx,
        finish_reason=None if failed else "stop",
        num_prompt_tokens=row_idx,
        num_completion_tokens=2 * row_idx,
        error=RowError("null_prompt", "column 'p' is null") if failed else None,
        values=logprobs(row_idx) if row_idx in (2, 4) else {},
    )


def logprobs(num_tokens: int) -> dict[str, Any]:
    """Return the values of a row for which log probabilities were asked, as an engine computes them: in float32."""
    values = (-torch.rand(num_tokens, generator=torch.Generator().manual_seed(num_tokens))).tolist()
    return {"token_ids": list(range(num_tokens)), "token_logprobs": values, "cumulative_logprob": sum(values)}


def journal_at(path: Path, schema: pa.Schema = SCHEMA, **options: Any) -> Journal:
    return Journal(LocalStore(path.parent), path.name, schema, **options)


def reader_of(path: Path) -> JournalReader:
    return JournalReader(LocalStore(path.parent), path.name)


ROWS = [completion(row_idx) for row_idx in range(6)]


def write(path: Path, *batches: list[Completion], close: bool = True, schema: pa.Schema = SCHEMA) -> Path:
    journal = journal_at(path, schema, sync_secs=0)
    for batch in batches:
        for row in batch:
            journal.append(row)
        journal.sync()
    if close:
        journal.close()
    return path


@pytest.fixture
def written(tmp_path: Path) -> bytes:
    """The bytes of a journal with three batches of two rows."""
    return write(tmp_path / "written.arrows", ROWS[:2], ROWS[2:4], ROWS[4:]).read_bytes()


def read(tmp_path: Path, content: bytes) -> list[Completion]:
    path = tmp_path / "read.arrows"
    path.write_bytes(content)
    return list(reader_of(path).read())


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    assert list(reader_of(write(tmp_path / "j", ROWS[:4], ROWS[4:])).read()) == ROWS


def test_what_was_synced_is_there_without_a_close(tmp_path: Path) -> None:
    assert list(reader_of(write(tmp_path / "j", ROWS[:2], ROWS[2:3], close=False)).read()) == ROWS[:3]


def test_close_syncs(tmp_path: Path) -> None:
    journal = journal_at(tmp_path / "j", sync_secs=1e9)
    journal.append(ROWS[0])
    journal.sync_if_due()
    assert not (tmp_path / "j").exists()
    journal.close()
    journal.close()
    assert list(reader_of(tmp_path / "j").read()) == ROWS[:1]


def test_a_sync_is_due_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now)
    journal = journal_at(tmp_path / "j", sync_secs=2.0)
    journal.append(ROWS[0])
    now = 101.9
    journal.sync_if_due()
    assert list(reader_of(tmp_path / "j").read()) == []
    now = 102.0
    journal.sync_if_due()
    assert list(reader_of(tmp_path / "j").read()) == ROWS[:1]


def test_a_journal_without_rows_leaves_no_file(tmp_path: Path) -> None:
    journal_at(tmp_path / "j").close()
    assert not (tmp_path / "j").exists() and list(reader_of(tmp_path / "j").read()) == []


def test_a_journal_cut_anywhere_gives_its_whole_batches(tmp_path: Path, written: bytes) -> None:
    """A kill or a full disk may end the file at any byte."""
    path, found = tmp_path / "j", []
    path.write_bytes(written)
    for size in range(len(written), -1, -1):
        os.truncate(path, size)
        rows = list(reader_of(path).read())
        assert rows == ROWS[: len(rows)]
        found.append(len(rows))
    assert found == sorted(found, reverse=True) and set(found) == {0, 2, 4, 6}


@pytest.mark.parametrize("tail", [bytes(1), bytes(4096), b"\xff" * 64], ids=["zero", "zeros", "ones"])
def test_a_tail_that_was_never_written_is_no_row(tmp_path: Path, written: bytes, tail: bytes) -> None:
    """File systems extend a file before its data arrive: after a power cut the tail may be zeros."""
    for size in range(0, len(written), 31):
        rows = read(tmp_path, written[:size] + tail)
        assert rows == ROWS[: len(rows)]
    zeroed = written[: len(written) // 2] + bytes(len(written) - len(written) // 2)
    assert read(tmp_path, zeroed) == ROWS[:2]


def test_a_damaged_byte_never_gives_a_wrong_row(tmp_path: Path, written: bytes) -> None:
    """Damaged offsets crashed the interpreter, a damaged length asked for terabytes, a damaged type was not caught."""
    path, complete = tmp_path / "j", 0
    path.write_bytes(written)
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(written):
            os.pwrite(file.fileno(), bytes([byte ^ (0x01, 0x80, 0xFF)[position % 3]]), position)
            rows = list(reader_of(path).read())
            os.pwrite(file.fileno(), bytes([byte]), position)
            assert rows == ROWS[: len(rows)], f"byte {position}"
            complete += len(rows) == len(ROWS)
    assert complete < len(written) / 2  # only padding, and the parts of a message that say nothing, may be anything


def test_values_that_were_exchanged_are_found_out(tmp_path: Path, written: bytes) -> None:
    """The right length, valid Arrow, other contents: only the checksum can tell."""
    at = written.index(b"prompt 2")
    assert read(tmp_path, written[:at] + b"prompt 7" + written[at + 8 :]) == ROWS[:2]


def test_a_file_of_another_kind_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, b"") == [] and read(tmp_path, b"not a journal") == []


def test_columns_of_another_version_come_and_go(tmp_path: Path) -> None:
    """Columns are known by their names: a version with one more column reads the journals of the one before."""
    without = pa.schema([field for field in SCHEMA if field.name not in ("error_kind", "cumulative_logprob")])
    more = SCHEMA.append(pa.field("new", pa.int32()))
    path = write(tmp_path / "j", ROWS, schema=without)
    expected = [replace(row, values={k: v for k, v in row.values.items() if k in without.names}) for row in ROWS]
    assert list(reader_of(path).read()) == expected
    assert list(reader_of(write(tmp_path / "k", ROWS, schema=more)).read()) == ROWS


def test_a_journal_without_what_every_completion_has_is_given_up(tmp_path: Path) -> None:
    """It was written by no version of the job; the rows are recomputed."""
    reader = reader_of(write(tmp_path / "j", ROWS, schema=SCHEMA.remove(SCHEMA.get_field_index("error"))))
    assert list(reader.read()) == [] and reader.damage is not None and "it has no column error" in reader.damage


@pytest.mark.parametrize(
    "name", ["unfinished/journal/00001.node1-2543-4c8190", "unfinished-choices/journal/00001.node1-2699-757a81"]
)
def test_a_journal_of_version_0_1_is_read(tmp_path: Path, name: str) -> None:
    """Its checksum was of the repr of a dataclass. A value that was exchanged in it is still found out."""
    path = Path(__file__).parent / f"runs/{name}.arrows"
    reader = reader_of(path)
    rows = list(reader.read())
    assert len(rows) == 56 and reader.damage is None
    assert len({row.key for row in rows}) == 56 and {row.row_idx for row in rows} <= set(range(20, 40))
    failed = [row for row in rows if row.error is not None]
    assert failed and {row.error.kind for row in failed if row.error} == {"prompt_too_long"}
    choices = [row.values.get("choice_probs") for row in rows if row.error is None]
    assert all(choices) if "choices" in name else not any(choices)
    content = path.read_bytes()
    at = content.index(b"Question 2")
    (tmp_path / "j").write_bytes(content[:at] + b"Question 9" + content[at + 10 :] + END)
    damaged = reader_of(tmp_path / "j")
    assert list(damaged.read()) == rows[:4], "those of the batch before it"
    assert damaged.damage is not None and "its checksum is wrong" in damaged.damage


def test_a_reader_goes_on_where_it_ended(tmp_path: Path) -> None:
    """Not from the start: what it has read may be damaged meanwhile, and does no harm."""
    path = tmp_path / "j"
    reader = reader_of(path)
    assert list(reader.read()) == []
    journal = journal_at(path, sync_secs=0)
    for row in ROWS:
        journal.append(row)
        journal.sync()
        assert list(reader.read()) == [row]
        assert list(reader.read()) == []
    read_before = path.stat().st_size
    journal.append(ROWS[1])
    journal.close()
    with path.open("r+b") as file:
        file.write(bytes(read_before))
    assert list(reader.read()) == [ROWS[1]]
    assert list(reader.read()) == [] and list(reader_of(path).read()) == []


@pytest.mark.parametrize("fills", [False, True], ids=["torn", "zeros"])
def test_a_torn_tail_is_read_once_it_is_whole(tmp_path: Path, written: bytes, fills: bool) -> None:
    """Another worker may look while the writer writes; some file systems show zeros where data are to come."""
    path = tmp_path / "j"
    path.write_bytes(written)
    for size in range(0, len(written), 7):
        reader = reader_of(path)
        os.truncate(path, size)
        if fills:
            os.truncate(path, len(written))
        rows = list(reader.read())
        with path.open("r+b") as file:
            file.seek(size)
            file.write(written[size:])
        assert [*rows, *reader.read()] == ROWS, f"torn at byte {size}"


def test_a_damaged_batch_ends_what_a_reader_finds(tmp_path: Path, written: bytes) -> None:
    path = tmp_path / "j"
    at = written.index(b"prompt 2")
    path.write_bytes(written[:at] + b"prompt 7" + written[at + 8 : -100])
    reader = reader_of(path)
    assert list(reader.read()) == ROWS[:2]
    with path.open("ab") as file:
        file.write(written[-100:])
    assert list(reader.read()) == []


def test_a_journal_that_was_replaced_is_read_from_its_start(tmp_path: Path) -> None:
    path = write(tmp_path / "j", ROWS)
    reader = reader_of(path)
    assert list(reader.read()) == ROWS
    write(tmp_path / "other", ROWS[:1], ROWS[1:4], ROWS[4:]).replace(path)
    assert list(reader.read()) == ROWS, "longer, another file"
    path.write_bytes(write(tmp_path / "other", ROWS[2:3]).read_bytes())
    assert list(reader.read()) == ROWS[2:3], "shorter, the same file"
    path.unlink()
    assert list(reader.read()) == []


def test_a_journal_that_another_client_has_removed_has_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS answers ESTALE where a local disk has no such file: who found a journal go ended with exit code 1."""
    path = write(tmp_path / "j", ROWS)

    def stale(fd: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        assert list(reader_of(path).read()) == []


def test_a_journal_that_cannot_be_synced_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = journal_at(tmp_path / "j", sync_secs=0)
    journal.append(ROWS[0])
    journal.sync()
    journal.append(ROWS[1])

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        journal.close()
    assert not [fd for fd in Path("/proc/self/fd").iterdir() if Path(os.path.realpath(fd)) == tmp_path / "j"]


def test_completions_become_columns_in_the_order_of_the_schema() -> None:
    batch = to_batch(iter(ROWS), SCHEMA)
    assert batch.schema == SCHEMA
    assert list(from_batch(batch)) == ROWS
    kinds = [row.error and row.error.kind for row in ROWS]
    assert batch["error_kind"].to_pylist() == kinds and "null_prompt" in kinds


@pytest.mark.parametrize(
    "values",
    [
        logprobs(50),
        {"token_ids": [], "token_logprobs": [], "cumulative_logprob": 0.0},
        {"token_ids": [2**31 - 1], "token_logprobs": [-torch.inf], "cumulative_logprob": -torch.inf},
        {"token_ids": [5], "token_logprobs": [0.0], "cumulative_logprob": 0.0},
    ],
    ids=["some", "none", "impossible", "certain"],
)
def test_log_probabilities_come_back_as_they_were(tmp_path: Path, values: dict[str, Any]) -> None:
    row = replace(ROWS[1], values=values)
    assert list(reader_of(write(tmp_path / "j", [row], ROWS[3:4])).read()) == [row, ROWS[3]]


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        ({"token_ids": (1, 2)}, {"token_ids": [1, 2]}),
        ({"token_logprobs": [-0.1]}, {"token_logprobs": [float(torch.tensor(-0.1))]}),
        ({"token_logprobs": [float("nan")]}, None),
        ({"cumulative_logprob": -3}, {"cumulative_logprob": -3.0}),
    ],
    ids=["tuple", "float64", "nan", "int"],
)
def test_a_value_that_changes_in_arrow_is_no_damage(tmp_path: Path, values: dict[str, Any], read_as: Any) -> None:
    """The checksum was of Python's values: a tuple came back as a list, and all rows after it were discarded."""
    reader = reader_of(write(tmp_path / "j", [replace(ROWS[1], values=values)], ROWS[3:4]))
    first, second = reader.read()
    assert second == ROWS[3] and reader.damage is None
    assert read_as is None or first == replace(ROWS[1], values=read_as)


def test_the_columns_of_log_probabilities_have_these_types() -> None:
    types = {str(field.name): str(field.type) for field in CompletionMode(logprobs=True).measured()}
    assert types == {
        "token_ids": "list<item: int32>",
        "token_logprobs": "list<item: float>",
        "cumulative_logprob": "double",
    }


def test_a_damaged_batch_is_reported_and_a_torn_one_is_not(tmp_path: Path, written: bytes) -> None:
    """Every kill leaves a torn end; what a disk has spoilt is worth knowing."""
    path = tmp_path / "j"
    at = written.index(b"prompt 2")
    path.write_bytes(written[:at] + b"prompt 7" + written[at + 8 :])
    reader = reader_of(path)
    assert reader.damage is None and list(reader.read()) == ROWS[:2]
    said = reader.damage
    assert said is not None and said.startswith(f"{path} is damaged at byte ")
    assert said.endswith(": its checksum is wrong; its later rows are recomputed")
    assert list(reader.read()) == [] and reader.damage == said
    for size in range(len(written)):
        path.write_bytes(written[:size])
        torn = reader_of(path)
        list(torn.read())
        assert torn.damage is None, f"torn at byte {size}"


def test_the_last_batch_may_be_torn_in_its_middle(tmp_path: Path, written: bytes) -> None:
    """A power cut can leave the right length and zeros; the batch is also what another worker is just writing."""
    at = written.index(b"prompt 4")
    spoilt = written[:at] + bytes(8) + written[at + 8 :].removesuffix(END)
    for content in (spoilt, spoilt + bytes(4096)):
        (tmp_path / "j").write_bytes(content)
        reader = reader_of(tmp_path / "j")
        assert list(reader.read()) == ROWS[:4] and reader.damage is None
    (tmp_path / "j").write_bytes(spoilt + END)
    assert list(reader.read()) == [] and reader.damage is not None, "the writer has closed it: this will not get better"
    (tmp_path / "j").write_bytes(written)
    assert list(reader.read()) == ROWS[4:] and reader.damage is None


def test_the_names_and_types_of_columns_are_under_the_checksum(tmp_path: Path, written: bytes) -> None:
    """They are not in a batch's bytes: a prompt whose column had another name would have been null."""
    at = written.index(b"prompt\0")
    assert read(tmp_path, written[:at] + b"promqt" + written[at + 6 :]) == []
