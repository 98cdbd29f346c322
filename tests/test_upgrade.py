"""Runs that an older version began, and manifests of newer ones: what goes on, and what is refused.

``runs/`` holds directories that older versions wrote; its README has the commands. They are never made again.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.config import SamplingConfig
from job.errors import UsageError
from job.modes.registry import MODES
from job.output.looking.found import find_run
from job.output.parts import defaults
from job.output.parts.defaults import defaults_of, without_defaults
from job.output.parts.differences import describe_differences
from job.output.parts.journal import Journal, JournalReader
from job.output.parts.manifest import FORMAT_VERSION, Manifest, claim_run_directory, read_manifest
from job.output.parts.part_schema import Columns
from job.output.store.addresses import open_store
from job.output.store.local import LocalStore
from job.run.older_runs import all_columns
from tests.conftest import Result
from tests.test_run import read_output

RunJob = Callable[..., Result]

COMMON = [*("--model", "model", "--dataset", "questions.jsonl", "--prompt-column", "question", "--dtype", "float32")]
SAMPLES = [
    *("--engine", "fake", "--id-column", "id", "--keep-columns", "score,tags", "--rows-per-shard", 20),
    *("--max-new-tokens", 50, "--num-samples", 4, "--temperature", 1, "--aggregate", "majority"),
]
CHOICES = [
    *("--engine", "fake", "--keep-columns", "id", "--rows-per-shard", 20, "--choices", "yes", "--choices", "no"),
    *("--num-samples", 4, "--temperature", 0.5, "--limit", 39, "--max-error-rate", 1),
]
UNFINISHED = {
    "unfinished": (SAMPLES, 24),
    "unfinished-choices": (CHOICES, 20),
    "unfinished-0.2": (SAMPLES, 24),
    "unfinished-0.3": (SAMPLES, 24),
}
"""Run to its options and the rows that its part and its journal lack."""

FINISHED = ("finished", "choices", "schema", "finished-0.2", "finished-0.3")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the directories and go there: the commands name things beside them. Nobody works on a run any more."""
    root = tmp_path / "runs"
    shutil.copytree(Path(__file__).parent / "runs", root)
    for path in [*root.glob("*/leases/*"), *root.glob("*/metrics/*")]:
        os.utime(path, (0, 0))
    monkeypatch.chdir(root)
    return root


def has_error_kind(name: str) -> bool:
    """Whether version 0.2 or later started a run."""
    return name.endswith(("-0.2", "-0.3"))


def first_part(run: Path) -> Path:
    return next(path for path in (run / "part-00000.parquet", run / "data/part-00000.parquet") if path.exists())


def complete(run_job: RunJob, output: str, options: list[Any]) -> Result:
    result = run_job("run", *COMMON, *options, "--output", output)
    assert result.exit_code == 0, result.stderr
    return result


def rounded(value: Any) -> Any:
    """Return values without the last bits of floats, which depend on the processor that computed them."""
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return {name: rounded(item) for name, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_run_of_an_older_version_is_continued(run_job: RunJob, runs: Path, name: str) -> None:
    """The rows of its journal are kept, its parts keep their columns, and the result is that of a run of today."""
    options, num_missing = UNFINISHED[name]
    first = first_part(runs / name).read_bytes()
    assert f"this launch {num_missing} samples," in complete(run_job, name, options).stdout
    assert first_part(runs / name).read_bytes() == first
    complete(run_job, "new", options)
    expected = read_output(runs / "new")
    expected = expected if has_error_kind(name) else expected.drop_columns(["error_kind"])
    found = read_output(runs / name)
    assert found.schema.equals(expected.schema)
    assert rounded(found.to_pylist()) == rounded(expected.to_pylist())
    schemas = [pq.read_schema(path) for path in sorted(first_part(runs / name).parent.glob("part-*"))]
    assert len(schemas) == 2 and schemas[0].equals(schemas[1], check_metadata=False)
    features = {schema.metadata[b"huggingface"] for schema in schemas}
    assert len(features) == 1, "datasets reads all parts with one description"
    verified = run_job("verify", name)
    assert verified.exit_code == 0 and verified.stdout.endswith("Correct and complete.\n"), verified.stdout
    assert "are already done" in complete(run_job, name, options).stderr


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_run_of_an_older_version_is_shown(run_job: RunJob, runs: Path, name: str) -> None:
    status = json.loads(run_job("status", name, "--json").stdout)
    total = 4 * (39 if name == "unfinished-choices" else 40)
    assert (status["rows"]["total"], status["rows"]["in_parts"]) == (total, 80)
    assert run_job("verify", name).exit_code == 75
    assert run_job("export", name).exit_code == 2
    partial = run_job("export", name, "--partial")
    assert partial.exit_code == 0 and len(partial.stdout.splitlines()) == total - UNFINISHED[name][1]


CSV = [
    *("run", "--model", "model", "--dataset", "zips.csv", "--prompt-template", "{{ question }} {{ zip }}"),
    *("--keep-columns", "zip,n", "--dtype", "float32", "--engine", "fake", "--rows-per-shard", 2),
    *("--max-new-tokens", 8),
]


def test_csv_of_an_older_run_is_read_as_it_was(run_job: RunJob, runs: Path) -> None:
    """Version 0.2 read 02139 as 2139, and integers as doubles if there were gaps: so are the rows that are done."""
    result = run_job(*CSV, "--output", "unfinished-csv-0.2")
    assert result.exit_code == 0, result.stderr
    table = read_output(runs / "unfinished-csv-0.2")
    assert table["zip"].to_pylist() == [123, 2139, 10115, 501] and table["n"].to_pylist() == [1.0, None, 3.0, None]
    assert "What is snow? 501<" in table["prompt"].to_pylist()[3]
    assert run_job("verify", "unfinished-csv-0.2").exit_code == 0
    assert run_job(*CSV, "--output", "new").exit_code == 0
    assert read_output(runs / "new")["zip"].to_pylist() == ["00123", "02139", "10115", "00501"]


def test_csv_that_an_older_run_read_in_a_way_of_its_own_is_refused(run_job: RunJob, runs: Path) -> None:
    """It found other types when it read all rows a second time; that reader does not exist any more."""
    (runs / "zips.csv").write_text("question,zip,n\n" + "q,00123,1\n" * 20_000 + "q,text,2\n")
    result = run_job(*CSV, "--output", "unfinished-csv-0.2")
    assert result.exit_code == 2
    assert (
        "was started by an earlier version, which read --dataset zips.csv differently" in result.stderr
        and "use a new --output" in result.stderr
    )


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_of_an_older_version_verifies_and_exports(run_job: RunJob, runs: Path, name: str) -> None:
    assert run_job("verify", name).exit_code == 0
    table = read_output(runs / name)
    for ending in ("jsonl", "csv", "parquet"):
        exported = run_job("export", name, "--to", f"all.{ending}")
        assert exported.exit_code == 0, exported.stderr
    assert pq.read_table(runs / "all.parquet").equals(table)
    lines = [json.loads(line) for line in (runs / "all.jsonl").read_text().splitlines()]
    assert [line["completion"] for line in lines] == table["completion"].to_pylist()
    assert has_error_kind(name) == ("error_kind" in table.column_names) == ("error_kind" in lines[0])
    header = (runs / "all.csv").read_text().splitlines()[0]
    assert header == ",".join(f'"{column}"' for column in table.column_names)


def test_the_card_of_an_older_run_is_written_as_it_was_but_for_its_words(run_job: RunJob, runs: Path) -> None:
    """Every fact of the old card is in the new one; a run of choices says its options under the same names."""
    from job.output.looking.footers import count_parts
    from job.output.looking.found import find_run
    from job.output.parts.card import write_card
    from job.output.parts.counts import Counts

    for name in FINISHED:
        card = runs / name / "README.md"
        before = card.read_text()
        card.unlink()
        run, totals = find_run(runs / name), Counts()
        for counts in count_parts(run.directory, range(run.plan.num_shards)).values():
            totals.include(counts)
        write_card(run.directory.store, run.manifest, totals)
        after = card.read_text()
        assert after.partition("# Completions")[0].partition("<!--")[0] == before.partition("<!--")[0]
        lines = {line for line in before.splitlines() if not line.startswith(("<!--", "- Sampling"))}
        assert lines - set(after.splitlines()) == set(), f"{name} lacks what it said"


def test_times_of_24_hours_in_an_older_run_are_read_as_null(run_job: RunJob, runs: Path) -> None:
    """Version 0.1 kept them as they were, though Arrow has no such time: its own parts could not be checked."""

    def rewrite_parts() -> None:
        digest = find_run(runs / "finished").manifest.digest.encode()
        for part in (runs / "finished").glob("part-*"):
            table = pq.read_table(part)
            late = pa.array([3_600 * 10**6, *[86_400 * 10**6] * (len(table) - 1)], pa.int64()).view(pa.time64("us"))
            table = table.set_column(table.column_names.index("score"), pa.field("score", late.type), late)
            pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"job.manifest": digest}), part)

    kept = ["id: string", "score: time64[us]", "tags: list<item: string>"]
    change_manifest(runs / "finished", lambda identity: identity["columns"].update(kept=kept))
    rewrite_parts()
    assert run_job("verify", "finished").exit_code == 0
    for ending in ("csv", "jsonl", "parquet"):
        assert run_job("export", "finished", "--to", f"all.{ending}").exit_code == 0
    scores = [json.loads(line)["score"] for line in (runs / "all.jsonl").read_text().splitlines()]
    assert scores[:3] == ["01:00:00", None, None] and scores.count(None) == len(scores) - 3


@pytest.mark.parametrize("name", ["unfinished", "unfinished-0.2", "unfinished-0.3"])
def test_error_rows_of_an_older_run_are_retried(run_job: RunJob, runs: Path, name: str) -> None:
    """Version 0.1 has no column error_kind: the kinds come from the texts."""
    complete(run_job, name, SAMPLES)
    before = read_output(runs / name)
    marked = run_job("retry", name, "--kind", "prompt_too_long")
    assert marked.exit_code == 0 and "4 samples will be recomputed (prompt_too_long 4)" in marked.stdout, marked.stderr
    assert "this launch 4 samples," in complete(run_job, name, SAMPLES).stdout
    assert read_output(runs / name).equals(before)
    assert run_job("verify", name).exit_code == 0


@pytest.mark.parametrize("name", [name for name in UNFINISHED if name != "unfinished-0.3"])
def test_the_parts_of_an_older_run_stay_in_its_directory(run_job: RunJob, runs: Path, name: str) -> None:
    """Its workers, which may still be running, look for them there; and so does its card."""
    assert f"in 2 parts: {name}/part-*.parquet\n" in complete(run_job, name, UNFINISHED[name][0]).stdout
    assert len([*(runs / name).glob("part-*.parquet")]) == 2 and not (runs / name / "data").exists()
    assert 'path: "part-*.parquet"' in (runs / name / "README.md").read_text()
    (runs / name / "part-7.parquet").touch()
    verified = run_job("verify", name)
    assert verified.exit_code == 1 and "part-7.parquet is not a part of this run" in verified.stdout
    (runs / name / "part-7.parquet").unlink()


@pytest.mark.parametrize("name", FINISHED)
def test_an_older_run_is_a_dataset_for_the_next(run_job: RunJob, runs: Path, name: str) -> None:
    base = ["run", "--engine", "fake", "--model", "model", "--dtype", "float32", "--no-include-prompt"]
    result = run_job(
        *base,
        "--dataset",
        name,
        "--prompt-column",
        "prompt",
        "--output",
        "next",
        "--max-error-rate",
        1,
        "--earlier-errors",
        "carry",
    )
    assert result.exit_code == 0, result.stderr
    assert len(read_output(runs / "next")) == len(read_output(runs / name))


def test_a_run_that_an_older_version_starts_at_the_same_moment_keeps_the_layout_of_that_version(
    run_job: RunJob, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was not there when the options were examined; the older version has claimed the run since."""
    manifest = (runs / "unfinished-0.2/manifest.json").read_text()
    own = LocalStore.create_exclusively

    def overtaken(store: LocalStore, name: str, data: bytes, **options: Any) -> bool:
        if name == "manifest.json":
            own(store, name, manifest.encode())
        return own(store, name, data, **options)

    monkeypatch.setattr(LocalStore, "create_exclusively", overtaken)
    complete(run_job, "new", SAMPLES)
    assert [path.name for path in sorted((runs / "new").glob("**/part-*"))] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert not (runs / "new/data").exists() and run_job("verify", "new").exit_code == 0


def test_an_older_run_with_other_options_is_refused_with_both_values(run_job: RunJob, runs: Path) -> None:
    result = run_job("run", *COMMON, *SAMPLES, "--output", "unfinished", "--top-k", 5, "--logprobs")
    assert result.exit_code == 2
    assert "--top-k was 0, now 5" in result.stderr
    assert "--logprobs was off, now on" in result.stderr
    without = [option for option in SAMPLES if option not in ("--aggregate", "majority")]
    result = run_job("run", *COMMON, *without, "--output", "unfinished")
    assert result.exit_code == 2 and '--aggregate was "majority", now not set' in result.stderr


def test_a_run_of_this_version_is_continued_and_names_no_default(run_job: RunJob, runs: Path) -> None:
    """Format 4 is what later versions will find."""
    complete(run_job, "new", SAMPLES)
    content = json.loads((runs / "new/manifest.json").read_text())
    assert content["format_version"] == FORMAT_VERSION == 4
    assert content["identity"]["sampling"] == {"max_new_tokens": 50, "temperature": 1.0, "num_samples": 4}
    assert content["identity"]["modes"] == {"aggregate": {"aggregate": "majority"}}
    assert content["identity"]["columns"] == {"kept": ["id: string", "score: double", "tags: list<item: string>"]}
    whole = read_output(runs / "new")
    (runs / "new/data/part-00001.parquet").unlink()
    assert "this launch 80 samples," in complete(run_job, "new", SAMPLES).stdout
    assert read_output(runs / "new").equals(whole)
    assert run_job("verify", "new").exit_code == 0


def change_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    change(content["identity"])
    path.write_text(json.dumps(content))


def test_an_option_of_a_newer_version_is_refused_by_name(run_job: RunJob, runs: Path) -> None:
    """To ignore it would mix rows of two kinds in one run."""
    complete(run_job, "new", SAMPLES)
    change_manifest(runs / "new", lambda values: values["sampling"].update(typical_p=0.9))
    result = run_job("run", *COMMON, *SAMPLES, "--output", "new")
    assert result.exit_code == 2
    assert "sampling.typical_p was 0.9, which this version does not know. Use a new --output" in result.stderr
    change_manifest(runs / "new", lambda values: values["sampling"].pop("typical_p"))
    change_manifest(runs / "new", lambda values: values["modes"].update(embedding={"layer": 3}))
    result = run_job("run", *COMMON, *SAMPLES, "--output", "new")
    assert result.exit_code == 2
    assert "modes.embedding.layer was 3, which this version does not know" in result.stderr


def test_a_default_that_a_manifest_names_is_the_same_as_one_that_it_does_not(run_job: RunJob, runs: Path) -> None:
    complete(run_job, "new", SAMPLES)
    change_manifest(runs / "new", lambda values: values["sampling"].update(top_k=0, stop=[]))
    result = run_job("run", *COMMON, *SAMPLES, "--output", "new")
    assert result.exit_code == 0 and "are already done" in result.stderr


def test_a_new_option_with_a_default_refuses_no_run(
    run_job: RunJob, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version with one more option finds runs of versions that did not know it; another value is refused."""
    complete(run_job, "new", SAMPLES)
    value = 1.0

    own = SamplingConfig.options
    sampling = {**defaults.DEFAULTS["sampling"], "typical_p": 1.0}
    monkeypatch.setitem(defaults.DEFAULTS, "sampling", sampling)  # type: ignore[arg-type]
    monkeypatch.setattr(SamplingConfig, "options", lambda config: own(config) | {"typical_p": value})
    for name, options in (("new", SAMPLES), ("unfinished", SAMPLES)):
        complete(run_job, name, options)
        found = read_manifest(open_store(runs / name))
        assert found is not None and found.section("sampling")["typical_p"] == 1.0
        assert run_job("verify", name).exit_code == 0
    value = 0.5
    for name in ("new", "unfinished"):
        result = run_job("run", *COMMON, *SAMPLES, "--output", name)
        assert result.exit_code == 2 and "sampling.typical_p was 1.0, now 0.5." in result.stderr


def test_values_without_a_default_are_named_by_both_versions(tmp_path: Path) -> None:
    """A field that a newer version of the job always writes cannot be guessed for an older run."""
    base = {"sampling": {}, "modes": {}, "plan": {"num_rows": 5}}
    store = open_store(tmp_path)
    claim_run_directory(store, Manifest(base, {}))
    newer = Manifest({**base, "plan": {"num_rows": 5, "arrangement": "shuffled"}}, {})
    with pytest.raises(UsageError, match=r'plan\.arrangement was unknown to the version that wrote it, now "shuffled"'):
        claim_run_directory(store, newer)


FROZEN: Mapping[str, Mapping[str, Any]] = {
    "dataset": {
        "limit": None,
        "csv_delimiter": None,
        "csv_encoding": None,
        "sheet": None,
        "card_options": None,
        "reader": None,
        "earlier_errors": None,
    },
    "prompt": {
        "prompt_column": None,
        "messages_column": None,
        "prompt_template": None,
        "system_prompt": None,
        "examples": None,
        "chat": None,
        "max_prompt_tokens": None,
        "on_long_prompt": "error",
        "request_column": None,
        "date": None,
        "last_assistant_turn": "error",
        "special_tokens_in_text": "allow",
        "chat_template": None,
        "chat_template_kwargs": None,
        "reasoning_effort": None,
        "prefill": None,
        "include_prefill": False,
        "source_language": None,
        "target_language": None,
        "text_prefix": "",
        "lowers_case": False,
        "whole_conversations": False,
        "text_rules": 1,
    },
    "sampling": {
        "max_new_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_new_tokens": 0,
        "stop_token_ids": [],
        "repetition_detection": 0,
        "seed": 0,
        "ignore_eos": False,
        "stop": [],
        "logit_bias": None,
        "bad_words": [],
        "num_samples": 1,
        "no_repeat_ngram_size": None,
        "num_beams": None,
        "length_penalty": None,
        "early_stopping": None,
    },
    "columns": {"include_prompt": True, "reused": False},
    "model": {"kv_cache_dtype": "auto", "task": "generate", "quantize": None, "adapter": []},
    "modes.reasoning": {"reasoning": None, "reasoning_markers": None, "max_reasoning_tokens": None},
    "modes.classify": {
        "text_pair_column": None,
        "longest_pair": None,
        "cuts": False,
        "problem": "",
        "labels": [],
        "reads_ahead": False,
    },
    "modes.embed": {
        "pooling": None,
        "normalize": None,
        "embedding_dtype": "float32",
        "prompt_name": None,
        "dimensions": None,
        "layers": [],
        "lowers_case": False,
        "cuts": False,
        "size": None,
        "prefix": "",
    },
    "modes.row_params": {"params_column": None, "row_params": [], "request_column": None},
    "modes.completion": {"logprobs": False, "top_logprobs": 0},
    "modes.choices": {
        "choices": [],
        "choice_normalization": "none",
        "choice_calibration": [],
        "choice_mean": False,
    },
    "modes.scores": {"score_column": None, "score_stride": None, "token_logprobs": False, "score_window": None},
    "modes.aggregate": {"aggregate": None},
    "modes.extraction": {"extract": None, "extract_field": None},
    "modes.structured": {"json_schema": None, "regex": None, "grammar": None},
    "modes.redraw": {"retry_invalid": 0, "retry_temperature": None},
}
"""The defaults that manifests of formats 3 and 4 leave out."""


def test_the_defaults_that_manifests_leave_out_stay_as_they_are() -> None:
    """Runs are on disk that mean these values by naming none: another default would make them other runs."""
    now = {**defaults.DEFAULTS, **{f"modes.{mode.name}": defaults_of(mode) for mode in MODES}}
    for section, frozen in FROZEN.items():
        for name, value in frozen.items():
            assert json.dumps(now[section].get(name, "nothing")) == json.dumps(value), (
                f"The default of {section}.{name} was {value!r} in format {FORMAT_VERSION}. Manifests of this format "
                "mean that value when they name none. A changed default needs a new FORMAT_VERSION, an entry for the "
                "old value in older_formats, and an entry here. (New options need neither; add them here.)"
            )
    new = {f"{section}.{name}" for section, values in now.items() for name in values if name not in FROZEN[section]}
    assert not new, f"Add the defaults of {sorted(new)} to FROZEN, so that they stay as they are."


def test_of_an_identity_without_defaults_nothing_is_lost() -> None:
    values = {"sampling": {"top_k": 0, "seed": 3}, "engine": "model", "modes": {"completion": {"logprobs": True}}}
    assert without_defaults(values) == {
        "sampling": {"seed": 3},
        "engine": "model",
        "modes": {"completion": {"logprobs": True}},
    }
    assert Manifest(without_defaults(values), {}).section("sampling") == {**FROZEN["sampling"], "seed": 3}


def test_the_frozen_runs_have_the_columns_that_they_began_with(runs: Path) -> None:
    """Those of version 0.1: no error_kind, and derived columns at the end."""
    names = {name: pq.read_schema(first_part(runs / name)).names for name in (*FINISHED, *UNFINISHED)}
    assert all(has_error_kind(name) == ("error_kind" in of_run) for name, of_run in names.items())
    assert names["schema"][-2:] == ["parse_ok", "parsed"] and names["finished"][-2:] == ["majority", "majority_share"]
    assert isinstance(pq.read_schema(runs / "schema/part-00000.parquet").field("parsed").type, pa.StructType)


def test_journals_of_an_older_run_are_ones_that_older_workers_read(runs: Path) -> None:
    """A worker of 0.1 that held a shard waited for ever for the rows that a helper of 0.2 wrote in other columns."""
    run = find_run(runs / "unfinished-choices")
    columns = Columns.of(run.manifest)
    (frozen,) = (runs / "unfinished-choices/journal").iterdir()
    with pa.ipc.open_stream(frozen.read_bytes()) as reader:
        assert reader.schema.equals(columns.journaled)
        _, metadata = reader.read_next_batch_with_custom_metadata()
    names = list(metadata)
    journal = Journal(run.directory.store, "journal/00001.new.arrows", columns.journaled)
    rows = list(JournalReader(run.directory.store, f"journal/{frozen.name}").read())
    for row in rows:
        journal.append(row)
    journal.close()
    with pa.ipc.open_stream((runs / "unfinished-choices/journal/00001.new.arrows").read_bytes()) as reader:
        batch, metadata = reader.read_next_batch_with_custom_metadata()
    assert list(metadata) == names == [b"crc32"] and batch.num_rows == len(rows) == 56
    assert list(JournalReader(run.directory.store, "journal/00001.new.arrows").read()) == rows


def test_a_template_of_an_older_run_is_rendered_as_it_was(run_job: RunJob, runs: Path) -> None:
    """Version 0.1 dropped a template's last newline: with it, the same run would get other prompts, or be refused."""

    def with_template(identity: dict[str, Any]) -> None:
        identity["prompt"] |= {"prompt_column": None, "prompt_template": "Q: {{ question }}\n"}

    change_manifest(runs / "unfinished", with_template)
    for path in (runs / "unfinished").glob("part-*"):
        path.unlink()
    shutil.rmtree(runs / "unfinished/journal")
    shutil.rmtree(runs / "unfinished/leases")
    args = [arg for arg in COMMON if arg not in ("--prompt-column", "question")]
    result = run_job("run", *args, *SAMPLES, "--output", "unfinished", "--prompt-template", "Q: {{ question }}\n")
    assert result.exit_code == 0, result.stderr
    assert (
        read_output(runs / "unfinished")["prompt"][0].as_py().startswith("<user>Q: Question 0: what is 0 plus 1?<eos>")
    )
    refused = run_job("run", *args, *SAMPLES, "--output", "unfinished", "--prompt-template", "Q: {{ question }}!\n")
    assert refused.exit_code == 2 and "--prompt-template was" in refused.stderr


def test_all_columns_of_an_older_run_are_those_that_it_began_with(runs: Path) -> None:
    """Version 0.1 overlooked columns that first occur after row 1,000; the run goes on without them."""
    manifest = find_run(runs / "unfinished").manifest
    schema = pa.schema([("score", pa.float64()), ("late", pa.string()), ("id", pa.string())])
    assert all_columns(schema, manifest) == ["score", "id"]
    assert all_columns(schema, None) == ["score", "late", "id"]


def test_long_values_that_begin_alike_are_shown_where_they_differ() -> None:
    """Both were cut at the same place, and read the same."""
    was, now = ({"prompt": {"system_prompt": f"{'x' * 200}{end}"}} for end in ("a\n", "b"))
    shown = describe_differences(Manifest({"modes": {}, **was}, {}), Manifest({"modes": {}, **now}, {}))
    assert shown is not None and "(they differ at character 200: 'xxxxxxxxxxa\\n' and 'xxxxxxxxxxb')." in shown
