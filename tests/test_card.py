"""The dataset card of a run: HuggingFace reads the directory by it, people learn what the rows are."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoTokenizer

import job.engine.fake
from job.engine.fake import FakeEngine
from job.output.looking.found import FoundRun, find_run
from job.output.parts.card import MARK, make_card, write_card
from job.output.parts.counts import Counts
from job.output.parts.manifest import Manifest
from job.output.store.local import LocalStore
from job.output.store.names import CARD
from tests.conftest import Result
from tests.test_run import read_output, write_jsonl
from tests.test_verify import make_run

RunJob = Callable[..., Result]


@pytest.fixture
def output(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> Path:
    """Return a finished run of 54 rows in 3 parts, 6 of them with an error."""
    return make_run(run_job, tiny_model(), tmp_path / "out")


def counts_of(run: FoundRun) -> Counts:
    counts = Counts()
    for shard_idx in range(run.plan.num_shards):
        counts.include(Counts.of_part(run.directory.store, run.directory.names.part(shard_idx)))
    return counts


def card_of(run: FoundRun, **changes: Any) -> str:
    """Return the card that a run would have with other values in its manifest: section or ``about`` to values."""
    identity, about = dict(run.manifest.identity), dict(run.manifest.about)
    for section, values in changes.items():
        if section == "about":
            about |= values
        else:
            identity[section] = identity[section] | values
    return make_card(Manifest(identity, about), counts_of(run))


def identity_of(path: Path) -> tuple[int, int]:
    """Return what a file that was written anew would have another one of."""
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns


def front_matter(text: str) -> dict[str, Any]:
    """Return the YAML as the Hub reads it."""
    return huggingface_hub.DatasetCard(text).data.to_dict()


def test_datasets_reads_the_directory_itself(output: Path) -> None:
    """Though manifest.json and metrics/*.jsonl lie beside the parts, and whatever the user puts there."""
    (output / "notes.json").write_text('{"a": 1}')
    loaded = datasets.load_dataset(str(output), split="train")
    expected = read_output(output)
    assert loaded.column_names == expected.column_names
    assert loaded["completion"][:] == expected["completion"].to_pylist()
    assert list(datasets.load_dataset(str(output), streaming=True)["train"]) == expected.to_pylist()


def test_huggingface_features_come_with_it(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    datasets.Dataset.from_dict({"prompt": ["a", "b"], "label": [1, 0]}, features=features).save_to_disk(tmp_path / "d")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "d", "--keep-columns", "label"]
    assert run_job(*args, "--output", tmp_path / "out").exit_code == 0
    assert datasets.load_dataset(str(tmp_path / "out"), split="train").features["label"] == features["label"]


def test_the_cache_of_datasets_tells_runs_apart(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    """Of directories with a card, ``datasets`` knows only their names: it gave the rows of another ``out``."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        data = write_jsonl(tmp_path / name / "d.jsonl", [{"prompt": name}])
        args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data]
        assert run_job(*args, "--output", tmp_path / name / "out").exit_code == 0
        loaded = datasets.load_dataset(str(tmp_path / name / "out"), split="train")
        assert loaded["prompt"][:] == [name]


def test_the_cache_of_datasets_notices_rows_that_were_done_again(
    run_job: RunJob, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (poison_id,) = AutoTokenizer.from_pretrained(tiny_model())("~", add_special_tokens=False)["input_ids"]
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a~"}])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(job.engine.fake, "FakeEngine", partial(FakeEngine, poison_id=poison_id))
        assert run_job(*args, "--max-error-rate", 1).exit_code == 0
    assert datasets.load_dataset(str(tmp_path / "out"), split="train")["completion"][:] == [None]
    assert run_job("retry", tmp_path / "out").exit_code == 0
    assert run_job(*args).exit_code == 0
    assert datasets.load_dataset(str(tmp_path / "out"), split="train")["completion"][:] == ["~a"]


def test_the_card_says_what_the_run_is(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    output = make_run(
        *[run_job, tiny_model(chat=True), tmp_path / "out", "--prompt-template", "Say `{{ prompt }}`:\n{{ id }}"],
        *["--system-prompt", "Use ```fences```.", "--temperature", 0.5, "--seed", 3, "--limit", 25],
    )
    text = (output / "README.md").read_text()
    assert text.startswith("---\nconfigs:\n") and f"\n---\n\n{MARK}\n\n# Completions of out.jsonl by " in text
    config = front_matter(text)["configs"][0]
    assert config.pop("description").startswith(f"Run {find_run(output).manifest.digest[:16]} of ")
    assert config == {"config_name": "default", "data_files": [{"split": "train", "path": "data/part-*.parquet"}]}
    assert {name: value for name, value in front_matter(text).items() if name != "configs"} == {
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "tags": ["synthetic"],
    }
    created = find_run(output).manifest.about["created"]
    for part in (
        "| rows | 50 |",
        "| rows with a completion | 44 |",
        "| error `template_error` | 6 |",
        f"| completion tokens | {counts_of(find_run(output)).num_completion_tokens:,} |",
        "- Dataset: `out.jsonl`, split `train`, the first 25 rows\n",
        "- Sampling: max_new_tokens `256`, temperature `0.5`, ",
        ", num_samples `2`\n",
        " seed `3`, ",
        f"- Date: {created}\n",
        f"- Versions: job {job.__version__}, python 3.",
        "is this Jinja2 template over its columns:\n\n```\nSay `{{ prompt }}`:\n{{ id }}\n```\n",
        "system prompt:\n\n````\nUse ```fences```.\n````\n",
        "The model's chat template is applied. Prompts of more than 256 tokens are error rows.",
    ):
        assert part in text, part
    assert str(tmp_path) not in text, "where files lie is nobody's business"
    assert (output / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prompt": {"messages_column": "m"}}, "The prompt of a row is the conversation in its column `m`."),
        ({"prompt": {"request_column": "body"}}, "the request to OpenAI's API in its column `body`."),
        ({}, "The prompt of a row is the text in its column `prompt`."),
        ({"prompt": {"chat": False}}, "No chat template is applied."),
        ({"prompt": {"on_long_prompt": "truncate-left"}}, " tokens are cut at the left of the row's own text."),
        ({"modes": {"choices": {"choices": ["a`", "b\n"]}}}, 'choices: `` a` ``, `"b\\n"`'),
        (
            {"modes": {"structured": {"json_schema": '{\n"type": "object"}'}}},
            'json-schema:\n\n```\n{\n"type": "object"}\n```',
        ),
        (
            {"modes": {"structured": {"regex": "a|b"}, "choices": {"choice_normalization": "tokens"}}},
            "choice-normalization: `tokens`\n\nregex: `a|b`",
        ),
        ({"about": {"revision": "v2"}}, ", revision `v2`, in "),
        ({"about": {"dataset": "org/name", "dataset_config": "x"}}, "- Dataset: `org/name`, configuration `x`, split "),
        ({"about": {"data_files": ["/a/b.csv", "c.csv"]}}, ", files `b.csv`, `c.csv`, split "),
    ],
    ids=str,
)
def test_every_kind_of_run_has_its_sentence(output: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in card_of(find_run(output), **changes)


def test_only_a_model_of_the_hub_is_a_base_model(output: Path) -> None:
    """A directory can have a name that looks like an id. Up to version 0.3, the commit identified the model."""
    run = find_run(output)
    named = {"model": "org/name"}
    assert "base_model" not in front_matter(card_of(run, about=named))
    assert "commit" not in card_of(run, about=named, model={"fingerprint": "unknown"})
    commit = "0123456789" * 4
    for text in (
        card_of(run, about=named | {"model_commit": commit}),
        card_of(run, about=named, model={"fingerprint": commit}),
    ):
        assert front_matter(text)["base_model"] == "org/name"
        assert f"- Model: `org/name`, commit `{commit}`, in " in text
    choices = front_matter(card_of(run, modes={"choices": {"choices": ["a", "b"]}}))
    assert choices["task_categories"] == ["text-classification"]


def test_the_yaml_holds_whatever_the_model_is_called(output: Path) -> None:
    text = card_of(find_run(output), about={"model": "no", "model_commit": "1" * 40})
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "no"


def test_retried_rows_are_counted_anew(run_job: RunJob, tiny_model: Any, output: Path) -> None:
    before = (output / "README.md").read_text()
    write_jsonl(output.parent / "out.jsonl", [])
    assert run_job("retry", output).exit_code == 0
    assert (output / "README.md").read_text() == before
    stale = before.replace("| error `null_prompt` | 6 |", "| error `null_prompt` | 9 |")
    (output / "README.md").write_text(stale)
    make_run(run_job, tiny_model(), output)
    assert (output / "README.md").read_text() == before


def test_a_card_that_is_right_is_not_written_again(run_job: RunJob, tiny_model: Any, output: Path) -> None:
    before = identity_of(output / "README.md")
    make_run(run_job, tiny_model(), output)
    assert identity_of(output / "README.md") == before
    (output / "README.md").unlink()
    make_run(run_job, tiny_model(), output)
    assert MARK in (output / "README.md").read_text()


@pytest.mark.parametrize("kind", ["text", "bytes", "directory", "link"])
def test_what_is_not_ours_is_left_alone(run_job: RunJob, tiny_model: Any, tmp_path: Path, kind: str) -> None:
    readme = tmp_path / "out" / "README.md"
    readme.parent.mkdir()
    if kind == "directory":
        readme.mkdir()
    elif kind == "link":
        readme.symlink_to(tmp_path / "nowhere")
    else:
        readme.write_bytes(b"# Mine\n" if kind == "text" else b"\xff\x00")
    before = identity_of(readme)
    make_run(run_job, tiny_model(), tmp_path / "out")
    assert identity_of(readme) == before


def test_a_card_whose_mark_was_removed_is_its_owners(run_job: RunJob, tiny_model: Any, output: Path) -> None:
    readme = output / "README.md"
    mine = readme.read_text().replace(MARK, "") + "\nMore words.\n"
    readme.write_text(mine)
    make_run(run_job, tiny_model(), output)
    assert readme.read_text() == mine


def test_verify_and_a_run_over_the_run_do_not_mind_it(run_job: RunJob, tiny_model: Any, output: Path) -> None:
    assert run_job("verify", output).exit_code == 0
    again = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", output, "--output", output.parent / "two"],
        *["--prompt-template", "{{ completion or 'none' }}", "--earlier-errors", "carry", "--max-error-rate", "1"],
    )
    assert again.exit_code == 0, again.stderr
    assert len(read_output(output.parent / "two")) == 54


def test_there_is_no_card_before_the_run_is_done(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    from job.launch.stop import StopFlag

    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}])
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopFlag, "__call__", lambda self: True)
        assert run_job(*args).exit_code == 75
    assert not (tmp_path / "out/README.md").exists()
    assert run_job(*args).exit_code == 0
    assert (tmp_path / "out/README.md").exists()


def test_many_workers_write_it_at_once(output: Path) -> None:
    """Each sweeps what others have half-written, as in ``conclude``; the card is there, whole, and nothing else."""
    run = find_run(output)
    counts, expected = counts_of(run), (output / "README.md").read_bytes()
    before = sorted(output.iterdir())
    (output / "README.md").unlink()

    def conclude(number: int) -> None:
        directory = find_run(output).directory
        directory.sweep()
        directory.discard_drafts()
        write_card(directory.store, run.manifest, counts)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(conclude, range(64)))
    assert (output / "README.md").read_bytes() == expected
    assert sorted(output.iterdir()) == before


def test_what_a_killed_worker_left_of_it_is_swept(run_job: RunJob, tiny_model: Any, output: Path) -> None:
    (output / ".README.md.dead.tmp").write_text("half")
    make_run(run_job, tiny_model(), output)
    assert not (output / ".README.md.dead.tmp").exists()


def test_a_full_disk_is_told(run_job: RunJob, tiny_model: Any, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are there, but the directory is not what was promised."""
    (output / "README.md").unlink()

    replace = LocalStore.replace

    def refuse(store: LocalStore, name: str, data: bytes) -> None:
        if name == CARD:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), store.describe(name))
        replace(store, name, data)

    monkeypatch.setattr(LocalStore, "replace", refuse)
    data = output.parent / "out.jsonl"
    result = run_job(
        *["run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", output],
        *["--rows-per-shard", 10, "--keep-columns", "id", "--num-samples", 2, "--temperature", 1],
        *["--max-error-rate", 1],
    )
    assert result.exit_code == 1
    assert result.stderr.endswith(
        f"job: {output}/README.md cannot be written: No space left on device. All rows are in the parts; "
        "run the same command once this is fixed.\n"
    )


def test_a_run_without_rows_has_a_card(run_job: RunJob, tiny_model: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    args = ["run", "--engine", "fake", "--model", tiny_model(), "--dataset", tmp_path / "empty.parquet"]
    assert run_job(*args, "--output", tmp_path / "out").exit_code == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "| rows | 0 |" in text and "| rows with an error | 0 |" in text
