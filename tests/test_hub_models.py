"""Models of the Hub: one commit for all processes, known by contents, and fetched once nothing refuses the run."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file, save_file

from job.run import preparation
from tests.conftest import ANN, Result, finish, start_processes
from tests.hub import Hub, Repo
from tests.quantized import FP8, quantize_again, to_fp8
from tests.run_files import files_of
from tests.test_run import read_output, write_jsonl

RunJob = Callable[..., Result]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 0.001)


@pytest.fixture
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model()


@pytest.fixture
def other(tiny_model: Callable[..., Path]) -> Path:
    """Return a model with other weights and the same tokenizer."""
    return tiny_model("llama", num_hidden_layers=3)


def contents(directory: Path) -> dict[str, bytes | Path | None]:
    return {path.name: path for path in directory.iterdir()}


@pytest.fixture
def repo(hub: Hub, tiny: Path) -> Repo:
    """Return the repository of a model, with much that nobody needs."""
    repo = hub.create("model", "acme/tiny")
    repo.commit(
        contents(tiny)
        | {"README.md": b"# Tiny", "pytorch_model.bin": b"pickle", "model.gguf": b"gguf", "onnx/model.onnx": b"onnx"}
    )
    return repo


@pytest.fixture
def job(run_job: RunJob, tmp_path: Path) -> RunJob:
    """Return a function that runs ``job run`` over six rows; of options given twice, the last one counts."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"question {idx}"} for idx in range(6)])
    base = ["--dataset", data, "--no-chat", "--max-new-tokens", 4, "--rows-per-shard", 2, "--dtype", "float32"]

    def run(*args: Any, model: Any = "acme/tiny", output: str = "out", engine: str = "fake") -> Result:
        return run_job("run", "--model", model, "--engine", engine, "--output", tmp_path / output, *base, *args)

    return run


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.stderr
    return result


def refusal(result: Result) -> str:
    assert result.exit_code == 2, (result.exit_code, result.stderr)
    last = result.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith("job: ")
    return last


def manifest(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return found


def identity(output: Path) -> str:
    return str(manifest(output)["identity"]["model"]["fingerprint"])


def undo_a_part(output: Path) -> None:
    files_of(output).part(1).unlink()
    files_of(output).card.unlink()


def fetched(hub: Hub) -> list[str]:
    """Return the names of the files that were asked for."""
    return sorted({item.path.partition("?")[0].rpartition("/")[2] for item in hub.requests("/resolve/")})


def test_only_what_is_needed_is_fetched_and_only_once(hub: Hub, repo: Repo, job: RunJob, tmp_path: Path) -> None:
    done(job(engine="paged"))
    small = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert fetched(hub) == sorted([*small, "model.safetensors"])
    assert len(hub.requests("GET /cdn/")) == 1
    hub.log.clear()
    done(job(output="again", engine="paged"))
    assert [item.path for item in hub.log] == ["/api/models/acme/tiny"]
    assert read_output(tmp_path / "again").equals(read_output(tmp_path / "out"))


def test_a_quantized_model_is_fetched_and_converted_once(
    hub: Hub, job: RunJob, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit says which it is: with what was made of it, its weights are not even read."""
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "model"
    shutil.copytree(tiny, directory)
    quantize_again(directory, FP8, to_fp8)
    repo = hub.create("model", "acme/tiny")
    repo.commit(contents(directory))
    done(job(engine="paged"))
    done(job(output="again", engine="paged"))
    assert len(hub.requests("GET /cdn/")) == 1
    (dense,) = (path for path in (tmp_path / "cache/dense").iterdir() if path.is_dir())
    done(job(output="local", engine="paged", model=directory))
    assert [path for path in (tmp_path / "cache/dense").iterdir() if path.is_dir()] == [dense], "a copy is the same"
    for name in ("again", "local"):
        assert read_output(tmp_path / name).equals(read_output(tmp_path / "out"))
    quantize_again(directory, FP8, lambda name, weight: {name: weight})
    tensors = load_file(directory / "model.safetensors")
    key = next(name for name in tensors if name.endswith("q_proj.weight_scale_inv"))
    save_file(tensors | {key: tensors[key] * 2}, directory / "model.safetensors", metadata={"format": "pt"})
    repo.commit(contents(directory))
    undo_a_part(tmp_path / "out")
    done(job(engine="paged"))  # at the commit of the run
    assert len(hub.requests("GET /cdn/")) == 1
    done(job(output="new", engine="paged"))
    assert len(hub.requests("GET /cdn/")) == 2
    assert len([path for path in (tmp_path / "cache/dense").iterdir() if path.is_dir()]) == 2


def test_another_model_with_the_same_tokenizer_is_another_run(
    hub: Hub, repo: Repo, job: RunJob, other: Path, tmp_path: Path
) -> None:
    """Both were ``unknown``, so half of the rows were the other model's, and ``job verify`` found nothing."""
    first = repo.refs["main"]
    done(job())
    hub.create("model", "acme/other").commit(contents(other))
    undo_a_part(tmp_path / "out")
    message = refusal(job(model="acme/other"))
    assert '--model was "acme/tiny", now "acme/other", and the contents differ. Use a new --output' in message
    second = repo.commit(contents(other))
    message = refusal(job("--revision", "main"))
    assert f'--revision was not set, now "main", and the contents differ (commit {first} then, {second} now)' in message
    done(job())
    assert manifest(tmp_path / "out")["about"]["model_commit"] == first


def test_the_same_command_goes_on_after_a_branch_has_moved(hub: Hub, repo: Repo, job: RunJob, other: Path) -> None:
    done(job("--revision", "main"))
    repo.commit(contents(other))
    done(job("--revision", "main"))


def test_a_branch_that_has_moved_is_named_with_the_way_back(
    hub: Hub, repo: Repo, job: RunJob, other: Path, tmp_path: Path
) -> None:
    first = repo.refs["main"]
    done(job())
    second = repo.commit(contents(other))
    undo_a_part(tmp_path / "out")
    message = refusal(job("--revision", "main"))
    assert (
        f"the contents differ (commit {first} then, {second} now). Use a new --output, or --revision {first} to go on"
        in message
    )
    done(job("--revision", first))


def test_a_launch_goes_on_with_the_commit_of_one_that_began_a_moment_ago(
    hub: Hub, repo: Repo, job: RunJob, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks of a job array look the branch up, it moves in between, and the first one claims the directory."""
    first = repo.refs["main"]
    done(job())
    repo.commit(contents(other))
    undo_a_part(tmp_path / "out")
    answers = [None]
    look = preparation.found_in
    monkeypatch.setattr(preparation, "found_in", lambda store: answers.pop() if answers else look(store))
    done(job())
    assert not answers and manifest(tmp_path / "out")["about"]["model_commit"] == first


def test_a_readme_makes_no_other_model(hub: Hub, repo: Repo, job: RunJob, tmp_path: Path) -> None:
    done(job())
    repo.commit({"README.md": b"# A better text"})
    undo_a_part(tmp_path / "out")
    done(job("--revision", "main"))
    done(job(output="new"))
    assert identity(tmp_path / "new") == identity(tmp_path / "out")
    assert manifest(tmp_path / "new")["about"]["model_commit"] == repo.refs["main"]


def test_a_copy_is_the_same_model(
    hub: Hub, repo: Repo, job: RunJob, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that it was uploaded from, one from ``hf download --local-dir``, a snapshot; and offline."""
    done(job())
    local = Path(snapshot_download("acme/tiny", local_dir=tmp_path / "local"))
    snapshot = Path(snapshot_download("acme/tiny"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for model in (tiny, local, snapshot, "acme/tiny"):
        undo_a_part(tmp_path / "out")
        done(job(model=model))
    shutil.rmtree(tmp_path / "out")
    done(job(model=local))
    assert manifest(tmp_path / "out")["about"]["model_commit"] is None
    (local / "generation_config.json").write_text('{"eos_token_id": 7}')
    undo_a_part(tmp_path / "out")
    assert "has other contents" in refusal(job(model=local))


def test_a_run_goes_on_at_its_commit(
    hub: Hub, repo: Repo, job: RunJob, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though main has moved, and without asking the Hub."""
    first = repo.refs["main"]
    done(job(engine="paged"))
    expected = read_output(tmp_path / "out")
    repo.commit(contents(other))
    undo_a_part(tmp_path / "out")
    hub.log.clear()
    done(job(engine="paged"))
    assert hub.log == [] and read_output(tmp_path / "out").equals(expected)
    assert f"- Model: `acme/tiny`, commit `{first}`, in " in (tmp_path / "out/README.md").read_text()


def test_a_download_of_the_whole_repository_serves_offline(
    hub: Hub, repo: Repo, job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As slurm/README.md says. Clients before version 2 leave no listing."""
    directory = Path(snapshot_download("acme/tiny"))
    shutil.rmtree(directory.parents[1] / "trees", ignore_errors=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done(job(engine="paged"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    done(job(output="online", engine="paged"))
    assert identity(tmp_path / "online") == identity(tmp_path / "out")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (directory / "model.safetensors").unlink()
    shutil.rmtree(directory.parents[1] / "job-trees")
    assert "model.safetensors of acme/tiny is not in the cache (HF_HOME)" in refusal(job(output="third"))


NO_WEIGHTS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "pickled": ({"pytorch_model.bin": b"x"}, "has pickled weights (pytorch_model.bin), which can run code"),
    "GGUF": ({"tiny-q4.gguf": b"x"}, "has its weights in GGUF files (tiny-q4.gguf)."),
    "GGUF alone": ({"tiny-q4.gguf": b"x", "config.json": None}, "holds GGUF files and no config.json."),
    "adapter": ({"adapter_config.json": b"{}", "config.json": None}, "is an adapter (LoRA or the like)"),
    "none": ({}, "has no weights: it contains neither model.safetensors nor"),
    "data": ({"config.json": None, "train.csv": b"x"}, "has no config.json, so it is not a model that transformers"),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_a_repository_without_usable_weights_is_refused_before_anything_is_fetched(
    hub: Hub, repo: Repo, job: RunJob, name: str
) -> None:
    """transformers took pickled weights from a pull request, or asked a public service to make one."""
    files, reason = NO_WEIGHTS[name]
    repo.commit({"model.safetensors": None, "pytorch_model.bin": None, "model.gguf": None})
    repo.commit(files)
    assert f"--model acme/tiny {reason}" in refusal(job())
    assert fetched(hub) == [] and hub.requests("discussions") == []


def test_a_missing_shard_is_named_before_any_is_fetched(hub: Hub, repo: Repo, job: RunJob, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    repo.commit(
        {
            "model.safetensors": None,
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-00001-of-00002.safetensors": b"x",
        }
    )
    message = refusal(job())
    assert "model-00002-of-00002.safetensors, which model.safetensors.index.json lists, is missing." in message
    assert hub.requests("/cdn/") == [] and not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--prompt-column", "question"],
        ["--keep-columns", "x"],
        ["--regex", "("],
        ["--max-new-tokens", 100_000],
        ["--max-model-len", 100_000],
    ],
    ids=str,
)
def test_a_wrong_option_costs_no_download_of_weights(hub: Hub, repo: Repo, job: RunJob, options: list[Any]) -> None:
    refusal(job(*options, engine="paged"))
    assert hub.requests("/cdn/") == []


def test_a_gated_model_is_refused_with_its_page_and_read_with_a_token(
    hub: Hub, job: RunJob, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its listing is public; its files are not."""
    hub.create("model", "acme/gated", gated=True, readers=("ann",)).commit(contents(tiny))
    message = refusal(job(model="acme/gated"))
    assert f"Accept its terms on its page, {hub.url}/acme/gated, then set HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", ANN)
    done(job(model="acme/gated"))


def test_a_preview_fetches_no_weights(hub: Hub, repo: Repo, run_job: RunJob, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])
    done(run_job("preview", "--model", "acme/tiny", "--dataset", data, "--no-chat"))
    assert hub.requests("/cdn/") == []


def test_a_failing_hub_is_no_wrong_usage(hub: Hub, repo: Repo, job: RunJob) -> None:
    for match in ("/api/models", "config.json", "/cdn/"):
        fault = hub.fault(match=match, status=503)
        result = job("--hub-timeout", 0, engine="paged")
        named = "acme/tiny; there is no such directory here" if "api" in match else "acme/tiny"
        assert (result.exit_code, f"Hub ({named}) does not answer: 503" in result.stderr) == (1, True), result.stderr
        hub.faults.remove(fault)
    done(job(engine="paged"))


def as_of_older_version(output: Path, fingerprint: str) -> None:
    """Leave only the manifest of a run, with what identified a model up to version 0.3."""
    found = manifest(output)
    found["identity"]["model"]["fingerprint"] = fingerprint
    found["about"].pop("model_commit", None)
    shutil.rmtree(output)
    output.mkdir()
    (output / "manifest.json").write_text(json.dumps(found))


def test_a_run_of_an_older_version_needs_to_have_its_commit(
    hub: Hub, repo: Repo, job: RunJob, other: Path, tmp_path: Path
) -> None:
    first = repo.refs["main"]
    done(job())
    for unknown in ("unknown", "main"):
        as_of_older_version(tmp_path / "out", unknown)
        message = refusal(job())
        assert f"which did not record the commit of its model ('{unknown}')" in message and "new --output" in message
    as_of_older_version(tmp_path / "out", first)
    second = repo.commit(contents(other))
    done(job())
    assert identity(tmp_path / "out") == first
    as_of_older_version(tmp_path / "out", first)
    assert "is another run" in refusal(job("--revision", second))


def shards(model: Path) -> dict[str, bytes | Path | None]:
    """Return a model's files with its weights in two shards."""
    from safetensors.torch import load_file, save

    weights = list(load_file(model / "model.safetensors").items())
    names = [f"model-0000{idx}-of-00002.safetensors" for idx in (1, 2)]
    halves = [dict(weights[idx::2]) for idx in (0, 1)]
    files: dict[str, bytes | Path | None] = {
        name: save(half, {"format": "pt"}) for name, half in zip(names, halves, strict=True)
    }
    index = {
        "metadata": {},
        "weight_map": {key: name for name, half in zip(names, halves, strict=True) for key in half},
    }
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return contents(model) | {"model.safetensors": None} | files


def test_each_shard_is_fetched_once_and_counts(hub: Hub, repo: Repo, job: RunJob, tiny: Path, tmp_path: Path) -> None:
    done(job(output="whole", engine="paged"))
    repo.commit(shards(tiny) | {"consolidated.safetensors": b"not in the index"})
    hub.log.clear()
    done(job(engine="paged"))
    assert len(hub.requests("GET /cdn/")) == 2
    assert read_output(tmp_path / "out").equals(read_output(tmp_path / "whole"))
    damaged = shards(tiny)["model-00002-of-00002.safetensors"]
    assert isinstance(damaged, bytes)
    repo.commit({"model-00002-of-00002.safetensors": damaged[:-1] + b"!"})
    undo_a_part(tmp_path / "out")
    assert "the contents differ" in refusal(job("--revision", "main"))


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_code(model: Path, repository: str = "") -> dict[str, bytes | Path | None]:
    """Return a model's files with code for them, in a repository or beside them."""
    prefix = f"{repository}--" if repository else ""
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": f"{prefix}code.OwnConfig", "AutoModelForCausalLM": f"{prefix}code.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": names}
    return contents(model) | {"config.json": json.dumps(config).encode(), "code.py": CODE.encode()}


@pytest.mark.parametrize("repository", ["", "acme/tiny"])
def test_code_is_that_of_the_commit(
    hub: Hub, repo: Repo, job: RunJob, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: str
) -> None:
    """Also where the configuration names the model's own repository, as save_pretrained leaves it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    first = repo.commit(with_code(tiny, repository))
    done(job("--trust-remote-code", engine="static"))
    paths = [item.path for item in hub.requests("code.py")]
    assert paths and all(first in path for path in paths)
    repo.commit({"code.py": CODE.replace('"own"', '"own" * 1').encode()})
    undo_a_part(tmp_path / "out")
    assert "the contents differ" in refusal(job("--trust-remote-code", "--revision", "main"))
    assert "code.py), which runs with your permissions. Read it, then give --trust-remote-code." in refusal(
        job(output="without")
    )


def test_code_in_another_repository_is_refused(hub: Hub, repo: Repo, job: RunJob, tiny: Path) -> None:
    repo.commit(with_code(tiny, "acme/code"))
    assert "its code lies in another repository (acme/code)" in refusal(job("--trust-remote-code"))


OF_ITS_OWN_NODE = (
    "import os, runpy, sys\n"
    "os.environ['HF_HUB_CACHE'] += os.environ['RANK']\n"
    "sys.argv[0] = 'job'\n"
    "runpy.run_module('job', run_name='__main__', alter_sys=True)\n"
)


@pytest.mark.slow
def test_all_ranks_read_one_commit_though_main_moves(
    hub: Hub, repo: Repo, job: RunJob, other: Path, tmp_path: Path
) -> None:
    """Two ranks of one replica held two models. Here they also have two caches, as on two nodes."""
    first, resolve = repo.refs["main"], repo.resolve

    def resolve_and_move(revision: str) -> str:
        found = resolve(revision)
        if revision == "main":
            repo.commit(contents(other))
        return found

    repo.resolve = resolve_and_move  # type: ignore[method-assign]
    args = ["--model", "acme/tiny", "--dataset", tmp_path / "data.jsonl", "--no-chat", "--max-new-tokens", 4]
    args += ["--dtype", "float32", "--rows-per-shard", 2, "--tensor-parallel-size", 2, "--output", tmp_path / "ranks"]
    results = finish(start_processes(["-c", OF_ITS_OWN_NODE, "run", *args], world_size=2))
    assert [result.exit_code for result in results] == [0, 0], results
    assert len({item.path for item in hub.requests("GET /cdn/")}) == 1 and len(hub.requests("GET /cdn/")) == 2
    assert manifest(tmp_path / "ranks")["about"]["model_commit"] == first
    done(job("--revision", first, engine="paged"))
    assert read_output(tmp_path / "ranks").equals(read_output(tmp_path / "out"))
