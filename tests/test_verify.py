"""``job verify``: every way in which a run directory can be wrong is found and named; a right one passes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.output.looking.found import find_run
from job.output.looking.part_check import ROWS_PER_BATCH
from job.output.looking.verification import verify
from tests.conftest import Result
from tests.run_files import files_of
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]
Damage = Callable[[Path, Path], None]
"""Takes the run directory, and that of another run."""


def make_run(run_job: RunJob, model: Path, output: Path, *options: Any, num_rows: int = 27) -> Path:
    """Return the directory of a finished run on FakeEngine; every tenth row has no prompt."""
    rows = [{"id": i, "prompt": f"question {i}?" if i % 10 else None} for i in range(num_rows)]
    data = write_jsonl(output.parent / f"{output.name}.jsonl", rows)
    result = run_job(
        *["run", "--engine", "fake", "--model", model, "--dataset", data, "--output", output, "--rows-per-shard", 10],
        *["--keep-columns", "id", "--num-samples", 2, "--temperature", 1, "--max-error-rate", 1, *options],
    )
    assert result.exit_code == 0, result.stderr
    return output


@pytest.fixture
def output(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> Path:
    """Return a finished run of 54 rows in 3 parts."""
    return make_run(run_job, tiny_model(), tmp_path / "out")


def metadata_of(part: Path) -> dict[bytes, bytes]:
    """Return a part's own metadata, without Arrow's."""
    metadata = dict(pq.read_metadata(part).metadata)
    del metadata[b"ARROW:schema"]
    return metadata


def rewrite(part: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write a part anew with other rows and its old metadata."""
    table = pq.read_table(part)
    changed = change(table)
    metadata = {**metadata_of(part), **(changed.schema.metadata or {})}
    pq.write_table(changed.replace_schema_metadata(metadata), part, **options)


def change_cell(part: Path, row: int, column: str, value: Any) -> None:
    """Write a part anew with another value in one place."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        at = table.schema.get_field_index(column)
        return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))

    rewrite(part, change)


def double_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 6), table.slice(5)])


def drop_row(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 5), table.slice(6)])


def replace_row(table: pa.Table) -> pa.Table:
    """Keep the number of rows: one is missing, another comes twice."""
    return pa.concat_tables([table.slice(0, 5), table.slice(4, 1), table.slice(6)])


def swap_rows(table: pa.Table) -> pa.Table:
    return table.take([1, 0, *range(2, len(table))])


def flip_data(part: Path) -> None:
    """Overwrite the first data page of the completions."""
    names = pq.read_schema(part).names
    chunk = pq.read_metadata(part).row_group(0).column(names.index("completion"))
    content = bytearray(part.read_bytes())
    content[chunk.data_page_offset : chunk.data_page_offset + 32] = b"\xff" * 32
    part.write_bytes(content)


def change_letter(part: Path, letter: bytes, *, checksums: bool) -> None:
    """Change one letter of a completion, in a page that says nothing about it but its checksum."""
    rewrite(part, lambda table: table, compression="none", use_dictionary=False, write_page_checksum=checksums)
    content = part.read_bytes()
    assert content.count(b"?21 noitseuq") == 2  # of the two samples
    part.write_bytes(content.replace(b"?21 noitseuq", b"?21 noitseu" + letter, 1))


def add_row_of_next_shard(out: Path) -> None:
    following = pq.read_table(out / "data/part-00002.parquet").slice(0, 1)
    rewrite(out / PART, lambda table: pa.concat_tables([table, following]))


def change_counts(part: Path, counts: bytes | None) -> None:
    table = pq.read_table(part)
    metadata = metadata_of(part)
    del metadata[b"job.counts"]
    if counts is not None:
        metadata[b"job.counts"] = counts
    pq.write_table(table.replace_schema_metadata(metadata), part)


def with_other_type(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("id")
    return table.set_column(at, "id", table["id"].cast(pa.int32()))


PART = "data/part-00001.parquet"

DAMAGE: dict[str, tuple[Damage, str]] = {
    "empty file": (lambda out, _: (out / PART).write_bytes(b""), "cannot be read: Parquet file size is 0 bytes"),
    "truncated": (
        lambda out, _: (out / PART).write_bytes((out / PART).read_bytes()[:-100]),
        "cannot be read: Parquet magic bytes not found in footer.",
    ),
    "no Parquet": (lambda out, _: (out / PART).write_text("hello " * 100), "cannot be read: Parquet magic bytes not"),
    "data page": (lambda out, _: flip_data(out / PART), "cannot be read, row group 0 of 1: "),
    "one letter": (
        lambda out, _: change_letter(out / PART, b"p", checksums=True),
        "cannot be read, row group 0 of 1: ",
    ),
    "no text": (
        lambda out, _: change_letter(out / PART, b"\xff", checksums=False),
        "cannot be read, row group 0 of 1: ",
    ),
    "directory": (lambda out, _: ((out / PART).unlink(), (out / PART).mkdir()), "cannot be read: "),
    "dead link": (
        lambda out, _: ((out / PART).unlink(), (out / PART).symlink_to(out / "nowhere")),
        "cannot be read: ",
    ),
    "another run": (
        lambda out, other: shutil.copy(other / PART, out / PART),
        "is a part of another run: it names another manifest",
    ),
    "another shard": (
        lambda out, _: shutil.copy(out / "data/part-00000.parquet", out / PART),
        "has row_idx 0, sample_idx 0, which does not belong to this part",
    ),
    "no run": (
        lambda out, _: pq.write_table(pa.table({"row_idx": [1]}), out / PART),
        "is not a part of a run: it names no manifest",
    ),
    "row twice": (lambda out, _: rewrite(out / PART, double_row), "has row_idx 12, sample_idx 1 twice or out of"),
    "row missing": (
        lambda out, _: rewrite(out / PART, drop_row),
        "has row_idx 13, sample_idx 0 where row_idx 12, sample_idx 1 should be",
    ),
    "last row missing": (
        lambda out, _: rewrite(out / PART, lambda table: table.slice(0, 19)),
        "has 19 rows of 20: row_idx 19, sample_idx 1 is missing",
    ),
    "last row twice": (
        lambda out, _: rewrite(out / PART, lambda table: pa.concat_tables([table, table.slice(19)])),
        "has row_idx 19, sample_idx 1 twice or out of order",
    ),
    "row of the next shard": (
        lambda out, _: add_row_of_next_shard(out),
        "has row_idx 20, sample_idx 0, which does not belong to this part",
    ),
    "row replaced": (lambda out, _: rewrite(out / PART, replace_row), "has row_idx 12, sample_idx 0 twice or out"),
    "rows swapped": (
        lambda out, _: rewrite(out / PART, swap_rows),
        "has row_idx 10, sample_idx 1 where row_idx 10, sample_idx 0 should be",
    ),
    "no rows": (
        lambda out, _: rewrite(out / PART, lambda table: table.slice(0, 0)),
        "has 0 rows of 20: row_idx 10, sample_idx 0 is missing",
    ),
    "column missing": (
        lambda out, _: rewrite(out / PART, lambda table: table.drop_columns("prompt")),
        "has columns row_idx, sample_idx, id, completion, finish_reason, num_prompt_tokens, num_completion_tokens, "
        "error, error_kind; the manifest asks for row_idx, sample_idx, id: int64, prompt, completion, ",
    ),
    "kept column renamed": (
        lambda out, _: rewrite(out / PART, lambda table: table.rename_columns({"id": "key"})),
        "has columns row_idx, sample_idx, key, prompt",
    ),
    "another type": (
        lambda out, _: rewrite(out / PART, with_other_type),
        "has a column id: int32; it should be id: int64",
    ),
    "neither": (
        lambda out, _: change_cell(out / PART, 5, "completion", None),
        "has a wrong row: row_idx 12, sample_idx 1: neither completion nor error",
    ),
    "both": (
        lambda out, _: change_cell(out / PART, 5, "error", "odd: error"),
        "has a wrong row: row_idx 12, sample_idx 1: both completion and error",
    ),
    "no reason": (
        lambda out, _: change_cell(out / PART, 5, "finish_reason", None),
        "has a wrong row: row_idx 12, sample_idx 1: neither finish_reason nor error",
    ),
    "reason of an error": (
        lambda out, _: change_cell(out / PART, 0, "finish_reason", "stop"),
        "has a wrong row: row_idx 10, sample_idx 0: both finish_reason and error",
    ),
    "odd reason": (
        lambda out, _: change_cell(out / PART, 5, "finish_reason", "tired"),
        "has a wrong row: row_idx 12, sample_idx 1: a finish_reason other than stop or length",
    ),
    "negative count": (
        lambda out, _: change_cell(out / PART, 5, "num_completion_tokens", -1),
        "has a wrong row: row_idx 12, sample_idx 1: a negative num_completion_tokens",
    ),
    "wrong token count": (
        lambda out, _: change_cell(out / PART, 5, "num_completion_tokens", 1000),
        "says num_completion_tokens ",
    ),
    "wrong counts": (
        lambda out, _: change_counts(
            out / PART, b'{"num_rows": 21, "num_prompt_tokens": 0, "num_completion_tokens": 0, "errors": {}}'
        ),
        "says num_rows 21 in its footer; its rows have 20",
    ),
    "error of another kind": (
        lambda out, _: [
            change_cell(out / PART, 0, "error", "odd: error"),
            change_cell(out / PART, 0, "error_kind", "odd"),
        ],
        "says errors {'null_prompt': 2} in its footer; its rows have {'odd': 1, 'null_prompt': 1}",
    ),
    "kind of another error": (
        lambda out, _: change_cell(out / PART, 0, "error_kind", "odd"),
        "has a wrong row: row_idx 10, sample_idx 0: error_kind and error contradict each other",
    ),
    "error without a kind": (
        lambda out, _: change_cell(out / PART, 0, "error_kind", None),
        "has a wrong row: row_idx 10, sample_idx 0: error_kind and error contradict each other",
    ),
    "kind without an error": (
        lambda out, _: change_cell(out / PART, 5, "error_kind", "odd"),
        "has a wrong row: row_idx 12, sample_idx 1: error_kind and error contradict each other",
    ),
    "counts are a list": (
        lambda out, _: change_counts(out / PART, b"[1]"),
        "says [1] in its footer, where its counts should be",
    ),
    "counts are torn": (lambda out, _: change_counts(out / PART, b"{"), "has no counts in its footer"),
    "no counts": (lambda out, _: change_counts(out / PART, None), "has no counts in its footer"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_part_is_named_with_what_is_wrong(
    run_job: RunJob, tiny_model: Any, output: Path, tmp_path: Path, name: str
) -> None:
    """The other parts count; the row numbers still add up."""
    damage, message = DAMAGE[name]
    other = output
    if name == "another run":
        other = make_run(run_job, tiny_model(), tmp_path / "other", "--seed", 7)
    damage(output, other)
    result = run_job("verify", output)
    assert result.exit_code == 1
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[1:3] == [
        "  parts    2 of 3 correct",
        "  rows     54 = 30 done + 4 error + 0 pending + 20 in damaged parts",
    ]
    assert lines[4:5] == ["  problems 1"]
    assert lines[5].startswith(f"    {PART} {message}")
    assert lines[6:] == ["Remove these files and run the same command: their rows will be recomputed."]


def test_what_it_says_to_do_helps(run_job: RunJob, tiny_model: Any, output: Path) -> None:
    """Remove the part, run the same command, and it is right again."""
    expected = pq.read_table(output / PART)
    (output / PART).write_bytes(b"")
    assert run_job("verify", output).exit_code == 1
    (output / PART).unlink()
    pending = run_job("verify", output)
    assert pending.exit_code == 75
    assert "54 = 30 done + 4 error + 20 pending" in pending.stdout
    assert pending.stdout.endswith("not complete: run the same command to continue.\n")
    make_run(run_job, tiny_model(), output)
    assert pq.read_table(output / PART).equals(expected)
    assert run_job("verify", output).exit_code == 0


def test_a_right_run_passes_and_nothing_in_it_changes(run_job: RunJob, output: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in output.rglob("*")}
    result = run_job("verify", output)
    assert result.exit_code == 0, result.stdout
    assert result.stdout.splitlines() == [
        str(output),
        "  parts    3 of 3 correct",
        "  rows     54 = 48 done + 6 error + 0 pending",
        "  errors   null_prompt 6",
        "Correct and complete.",
    ]
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in output.rglob("*")} == before


@pytest.mark.parametrize("options", [["--no-include-prompt"], ["--num-samples", 1, "--compression", "none"]], ids=str)
def test_runs_of_other_forms_are_right_too(run_job: RunJob, tiny_model: Any, tmp_path: Path, options: Any) -> None:
    assert run_job("verify", make_run(run_job, tiny_model(), tmp_path / "out", *options)).exit_code == 0


def test_columns_of_the_dataset_may_have_names_that_only_other_runs_use(
    run_job: RunJob, tiny_model: Any, tmp_path: Path
) -> None:
    """They were judged as if they were ours: a good part was condemned, and removed as it is advised."""
    names = ["token_ids", "choice_logprobs", "parse_ok", "parsed", "majority"]
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "one", **dict.fromkeys(names, "theirs")}])
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"],
        *["--keep-columns", ",".join(names)],
    )
    assert result.exit_code == 0, result.stderr
    verified = run_job("verify", tmp_path / "out")
    assert verified.exit_code == 0, verified.stdout


def test_a_run_of_the_real_engine_with_log_probabilities(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Right as it is; a token without its probability is found."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": text} for text in ("one", None, "three")])
    output = tmp_path / "out"
    result = run_job(
        *["run", "--model", tiny_model(), "--dataset", data, "--output", output, "--dtype", "float32"],
        *["--max-new-tokens", 3, "--logprobs", "--max-error-rate", 1],
    )
    assert result.exit_code == 0, result.stderr
    assert run_job("verify", output).exit_code == 0
    change_cell(output / "data/part-00000.parquet", 2, "token_logprobs", [-1.0])
    assert "row_idx 2: not one of token_logprobs for each" in run_job("verify", output).stdout


def test_an_empty_dataset_is_right(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """One part without rows; without it the run is not complete, though no row is pending."""
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    output = tmp_path / "out"
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "empty.parquet"]
    assert run_job(*args, "--output", output).exit_code == 0
    assert run_job("verify", output).exit_code == 0
    (output / "data/part-00000.parquet").unlink()
    assert run_job("verify", output).exit_code == 75


def test_files_that_readers_would_take_for_parts_are_named(run_job: RunJob, output: Path) -> None:
    """Their rows would come twice."""
    names = ["part-00003.parquet", "part-1.parquet", "part-00001 (copy).parquet", "part-\u0661.parquet"]
    for name in [*names, "part-\udcff\n.parquet"]:
        shutil.copy(output / PART, output / "data" / name)
    (output / "data/notes.txt").write_text("mine")
    (output / "data/.part-00001.w.tmp").write_bytes(b"unfinished")
    result = run_job("verify", output)
    assert result.exit_code == 1
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert lines[2] == "rows     54 = 48 done + 6 error + 0 pending"
    plan = "the plan has data/part-00000.parquet to data/part-00002.parquet"
    for name in [*(f"data/{name}" for name in [*names, "notes.txt"]), r"'data/part-\udcff\n.parquet'"]:
        assert f"{name} is not a part of this run: {plan}" in lines


def test_twenty_problems_are_shown_and_the_others_counted(run_job: RunJob, output: Path) -> None:
    for number in range(50, 75):
        (output / f"data/part-{number:05d}.parquet").touch()
    result = run_job("verify", output)
    assert result.stdout.count("is not a part of this run") == 20
    assert "and 5 more; --json lists all" in result.stdout
    assert len(json.loads(run_job("verify", "--json", output).stdout)["problems"]) == 25


def test_json_names_what_is_wrong(run_job: RunJob, output: Path) -> None:
    (output / PART).write_bytes(b"")
    result = run_job("verify", output, "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem["file"] == PART and problem["problem"].startswith("cannot be read")
    assert json.loads(result.stdout) | {"problems": []} == {
        "output": str(output),
        "rows": {"total": 54, "done": 30, "error": 4, "pending": 0, "damaged": 20},
        "errors_by_kind": {"null_prompt": 4},
        "parts": {"total": 3, "right": 2, "to_retry": 0},
        "complete": False,
        "problems": [],
    }


def test_a_part_to_be_retried_is_right_but_not_complete(run_job: RunJob, output: Path) -> None:
    retry = files_of(output).retry(1)
    retry.parent.mkdir(exist_ok=True)
    retry.write_text('{"kinds": []}')
    result = run_job("verify", output)
    assert result.exit_code == 75
    assert "  retry    rows in 1 part\n" in result.stdout


def test_a_part_of_many_row_groups_is_read_to_its_end(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """A hole in the last batch of a large row group, and a damaged page in the last of several."""
    num_rows = 2 * ROWS_PER_BATCH + 100
    output = make_run(
        *[run_job, tiny_model(), tmp_path / "out", "--num-samples", 1, "--rows-per-shard", num_rows],
        num_rows=num_rows,
    )
    part = output / "data/part-00000.parquet"
    assert pq.read_metadata(part).num_row_groups == 3
    assert run_job("verify", output).exit_code == 0
    original = part.read_bytes()
    rewrite(part, lambda table: pa.concat_tables([table.slice(0, num_rows - 5), table.slice(num_rows - 4)]))
    assert f"{num_rows - 4} where row_idx {num_rows - 5} should be" in run_job("verify", output).stdout
    part.write_bytes(original)
    chunk = pq.read_metadata(part).row_group(2).column(0)
    content = bytearray(original)
    content[chunk.data_page_offset : chunk.data_page_offset + 16] = b"\xff" * 16
    part.write_bytes(content)
    assert "cannot be read, row group 2 of 3: " in run_job("verify", output).stdout


def test_a_file_that_may_not_be_read_is_no_damage(
    run_job: RunJob, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody should remove it. (Root may read everything, so permissions are no test here.)"""

    open_file = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.suffix == ".parquet":
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    result = run_job("verify", output)
    assert result.exit_code == 1
    assert result.stderr == f"job: {output}/data/part-00000.parquet cannot be read: Permission denied.\n"


def test_random_damage_never_ends_in_a_traceback(run_job: RunJob, output: Path) -> None:
    """Bytes overwritten anywhere: a part is right, or it has a problem."""
    import random

    part, original = output / PART, (output / PART).read_bytes()
    rng = random.Random(0)
    found = find_run(output)
    num_problems = 0
    for _ in range(60):
        content = bytearray(original)
        for _ in range(rng.choice([1, 4, 16])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        part.write_bytes(content)
        num_problems += len(verify(found).problems)
    assert num_problems > 20


def test_every_command_says_the_same_of_a_lost_manifest(
    run_job: RunJob, output: Path, tiny_model: Any, tmp_path: Path
) -> None:
    """They said that it was not a run directory, or a manifest of another version."""
    model = ["--engine", "fake", "--model", tiny_model()]
    data = write_jsonl(tmp_path / "some.jsonl", [{"prompt": "a"}])
    commands = [
        *(["verify", output], ["status", output], ["show", output], ["report", output], ["retry", output]),
        *(["compare", output, output], ["export", output, "--to", tmp_path / "x.csv"], ["publish", output, "org/name"]),
        ["run", *model, "--dataset", data, "--output", output],
        ["run", *model, "--dataset", data, "--output", tmp_path / "b", "--reuse", output],
    ]
    as_dataset = ["run", *model, "--dataset", output, "--output", tmp_path / "b"]
    manifest, num_parts = output / "manifest.json", len(list(output.glob("data/*.parquet")))
    content = manifest.read_bytes()
    kept = "Put it back from a copy; its parts can still be read as Parquet files. Without it the run cannot go on: "
    for state, text in (("missing", None), ("damaged", content[:50]), ("damaged", b""), ("damaged", b"{}")):
        manifest.unlink()
        if text is not None:
            manifest.write_bytes(text)
        for command in commands:
            result = run_job(*command)
            [line] = [line for line in result.stderr.splitlines() if line.startswith("job: ")]
            assert result.exit_code == 2, line
            assert f"{num_parts} parts of " in line and kept in line and state in line, (command, line)
        result = run_job(*as_dataset)
        assert result.exit_code == 2 and f"its manifest.json is {state}, so it is not known" in result.stderr
        manifest.touch()
    for part in output.glob("data/*"):
        part.unlink()
    (output / "journal/00000.host-1-abc.arrows").touch()
    manifest.unlink()
    result = run_job("status", output)
    assert f"job: {output} holds 1 journal of a run, but manifest.json is missing. Put it back" in result.stderr


@pytest.mark.parametrize("command", ["verify", "status"])
def test_no_run_directory_gets_one_line_and_exit_code_2(run_job: RunJob, tmp_path: Path, command: str) -> None:
    """Missing, a file, no manifest, one that is none, of another version, without a plan."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    manifests = {
        "torn": ('{"format_version": 2, "ident', "is not a manifest"),
        "list": ("[]", "is not a manifest"),
        "bytes": ("\ud800", "is not a manifest"),
        "version": ('{"format_version": 99, "identity": {}, "about": {}}', "has format 99; this version reads"),
        "plan": ('{"format_version": 3, "identity": {"modes": {}}, "about": {}}', "does not say how the run is cut"),
        "text": ('{"format_version": 3, "identity": "x", "about": {}}', "is not a manifest"),
        "older": ('{"format_version": 2, "identity": {}, "about": {}}', "is not a manifest (it has no 'answer')"),
        "zero": (
            '{"format_version": 3, "about": {}, "identity": {"modes": {}, "plan": {"num_rows": 5, "rows_per_shard": 0}'
            ', "sampling": {"num_samples": 1}}}',
            "does not say how the run is cut",
        ),
    }
    expected = {"missing": "it does not exist", "file": "it is not a directory", "empty": "it has no manifest.json"}
    for name, (text, message) in manifests.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        expected[name] = message
    for name, message in expected.items():
        result = run_job(command, tmp_path / name)
        assert result.exit_code == 2
        assert message in result.stderr and result.stderr.startswith("job: ") and result.stderr.count("\n") == 1
        assert result.stdout == ""
