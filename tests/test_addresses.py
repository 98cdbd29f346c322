"""The spellings of repositories of the Hub, for datasets and for models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.errors import UsageError
from job.run.located import located
from tests.conftest import Result
from tests.hub import Hub

NOTHING: dict[str, Any] = {
    "model": "m",
    "revision": None,
    "adapter": (),
    "dataset": "d.jsonl",
    "dataset_revision": None,
    "data_files": (),
}


def meant(option: str, text: str, **others: Any) -> tuple[Any, ...]:
    """Return the id, the revision and the files that an option means."""
    values = located(NOTHING | {option: text} | others)
    revision = {"model": "revision", "dataset": "dataset_revision"}[option]
    return values[option], values[revision], *values["data_files"]


DATASETS = {
    "org/name": ("org/name", None),
    "org/name@v1.0": ("org/name", "v1.0"),
    "name@v1": ("name", "v1"),
    "org/name@refs/pr/1": ("org/name", "refs/pr/1"),
    "datasets/org/name": ("org/name", None),
    "datasets/org/name@v1": ("org/name", "v1"),
    "data/questions@home.jsonl": ("data/questions@home.jsonl", None),
    "hf://datasets/org/name": ("org/name", None),
    "HF://datasets/org/name/": ("org/name", None),
    "hf://datasets/name": ("name", None),
    "hf://datasets/org/name@v1": ("org/name", "v1"),
    "hf://datasets/org/name@v1/a.csv.gz": ("org/name", "v1", "a.csv.gz"),
    "hf://datasets/org/name/data/*.csv": ("org/name", None, "data/*.csv"),
    "hf://datasets/org/name@refs/convert/parquet/default/train": (
        "org/name",
        "refs/convert/parquet",
        "default/train/**",
    ),
    "hf://datasets/org/name@refs%2Fconvert%2Fparquet": ("org/name", "refs/convert/parquet"),
    "https://huggingface.co/datasets/org/name": ("org/name", None),
    "https://huggingface.co/datasets/org/name/?x=1#readme": ("org/name", None),
    "https://hf.co/datasets/org/name/tree/main": ("org/name", "main"),
    "https://huggingface.co/datasets/org/name/tree/v1/data": ("org/name", "v1", "data/**"),
    "https://huggingface.co/datasets/org/name/blob/main/a.weird": ("org/name", "main", "a.weird"),
    "https://huggingface.co/datasets/org/name/resolve/main/b%20c.csv?download=true": ("org/name", "main", "b c.csv"),
    "https://huggingface.co/datasets/org/name/tree/refs%2Fpr%2F1": ("org/name", "refs/pr/1"),
    "https://huggingface.co/datasets/org/name/commit/0123abc": ("org/name", "0123abc"),
    "https://mirror.example/datasets/org/name": ("org/name", None),
}


@pytest.mark.parametrize("text", DATASETS)
def test_spellings_of_a_dataset(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert meant("dataset", text) == DATASETS[text]


MODELS = {
    "org/name": ("org/name", None),
    "org/name@v1": ("org/name", "v1"),
    "gpt2@main": ("gpt2", "main"),
    "models/org/name": ("org/name", None),
    "hf://org/name": ("org/name", None),
    "hf://models/org/name@v1": ("org/name", "v1"),
    "https://huggingface.co/org/name": ("org/name", None),
    "https://huggingface.co/org/name/tree/v1": ("org/name", "v1"),
}


@pytest.mark.parametrize("text", MODELS)
def test_spellings_of_a_model(text: str) -> None:
    assert meant("model", text) == MODELS[text]


REFUSALS = {
    ("dataset", "hf://org/name"): "is a model of the Hub. A dataset is hf://datasets/org/name, or org/name.",
    ("dataset", "hf://spaces/org/name"): "is a space of the Hub.",
    ("dataset", "hf://buckets/org/name/x"): "is a bucket of the Hub.",
    ("dataset", "hf://"): "names no repository. Write hf://datasets/org/name.",
    (
        "dataset",
        "https://huggingface.co/org/name",
    ): "is the page of a model. Give the page of a dataset or",
    ("dataset", "https://huggingface.co/datasets/org/name/viewer"): "is not the page of a dataset on the Hub.",
    ("dataset", "https://huggingface.co/papers/2401.1"): "is not the page of a dataset on the Hub.",
    ("model", "hf://datasets/org/name"): "is a dataset of the Hub. A model is hf://org/name, or org/name.",
    ("model", "https://huggingface.co/datasets/org/name"): "is the page of a dataset.",
    ("model", "hf://org/name/folder"): "names something inside a repository. Give the repository: org/name.",
    ("dataset", "https://[abc"): "is not an address: Invalid IPv6 URL.",
    ("model", "s3://bucket/model"): "is an address, not a path. Give a Hub id, or copy the model to a directory",
}


@pytest.mark.parametrize(("option", "text"), REFUSALS)
def test_what_is_something_else(option: str, text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        meant(option, text)
    assert REFUSALS[option, text] in str(refusal.value) and text in str(refusal.value)


def test_a_revision_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert meant("dataset", "org/name@v1", dataset_revision="v1") == ("org/name", "v1")
    assert meant("model", "org/name", revision="v1") == ("org/name", "v1")
    with pytest.raises(UsageError, match="names the revision v1, and --dataset-revision is v2"):
        meant("dataset", "org/name@v1", dataset_revision="v2")
    with pytest.raises(UsageError, match="names the revision v1, and --revision is v2"):
        meant("model", "org/name@v1", revision="v2")
    with pytest.raises(UsageError, match="names files, and --data-files was given, too"):
        meant("dataset", "hf://datasets/org/name/a.csv", data_files=("b.csv",))


@pytest.mark.parametrize("name", ["org/name@v1", "datasets/org/name", "models/org/name"])
def test_what_lies_here_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    for option in ("dataset", "model"):
        assert meant(option, name) == (name, None)


@pytest.mark.parametrize(
    "form", ["acme/data@v1", "hf://datasets/acme/data@v1/a.jsonl", "URL/datasets/acme/data/tree/v1"]
)
def test_a_run_knows_the_dataset_in_any_spelling(
    hub: Hub, run_job: Callable[..., Result], tiny_model: Callable[..., Path], tmp_path: Path, form: str
) -> None:
    repository = hub.create("dataset", "acme/data")
    commit = repository.commit({"a.jsonl": b'{"prompt": "a"}\n'})
    repository.refs["v1"] = commit
    repository.commit({"a.jsonl": b'{"prompt": "moved"}\n'})
    options = ["--model", tiny_model(), "--engine", "fake", "--no-chat", "--output", tmp_path / "out"]
    assert run_job("run", *options, "--dataset", form.replace("URL", hub.url)).exit_code == 0
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())["about"]
    assert (about["dataset"], about["dataset_revision"], about["dataset_commit"]) == ("acme/data", "v1", commit)
    assert run_job("run", *options, "--dataset", "acme/data").exit_code == 0, "it continues at its commit"
