"""Adapters of the Hub: at one commit for all processes and restarts, offline, and the model that an adapter names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.conftest import Result
from tests.hub import Hub, Repo
from tests.test_hub_models import contents, done, fetched, manifest, refusal, undo_a_part
from tests.test_run import read_output, write_jsonl

peft = pytest.importorskip("peft")

RunJob = Callable[..., Result]


def make_adapter(base: Path, directory: Path, named: str | None = None, **settings: Any) -> Path:
    """Write a random adapter of a model, and perhaps another name of that into its configuration."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(directory)
    if named is not None:
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
    return directory


@pytest.fixture
def tiny(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model()


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    return make_adapter(tiny, tmp_path / "lora", "acme/tiny")


@pytest.fixture
def repo(hub: Hub, tiny: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    """Return the repository of an adapter, beside that of its model."""
    monkeypatch.setattr("job.remote.patience.FIRST_PAUSE_SECS", 0.001)
    hub.create("model", "acme/tiny").commit(contents(tiny))
    repo = hub.create("model", "acme/lora")
    repo.commit(contents(adapter))
    return repo


@pytest.fixture
def job(run_job: RunJob, tmp_path: Path) -> RunJob:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"question {idx}"} for idx in range(6)])
    base = ["--dataset", data, "--no-chat", "--max-new-tokens", 4, "--rows-per-shard", 2, "--dtype", "float32"]

    def run(*args: Any, output: str = "out", engine: str = "fake") -> Result:
        return run_job("run", "--engine", engine, "--output", tmp_path / output, *base, *args)

    return run


def test_it_is_read_at_one_commit_and_is_what_a_copy_of_it_is(
    hub: Hub, repo: Repo, job: RunJob, tiny: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is the one that it names; nothing is asked once the run has begun, whatever becomes of the branch."""
    first = repo.refs["main"]
    result = done(job("--adapter", "acme/lora", engine="paged"))
    assert (
        f"adapter acme/lora at commit {first[:12]}, LoRA, rank 4, is merged into the model (q_proj, v_proj)"
        in result.stderr
    )
    assert "--model is left out: it is acme/tiny at commit" in result.stderr
    about = manifest(tmp_path / "out")["about"]
    assert (about["model"], about["adapter"], about["adapter_commits"]) == ("acme/tiny", ["acme/lora"], [first])
    assert f"- Merged into it: `acme/lora`, commit `{first}`" in (tmp_path / "out/README.md").read_text()
    expected = read_output(tmp_path / "out")
    repo.commit(contents(make_adapter(tiny, tmp_path / "other", "acme/tiny", lora_alpha=64)))
    undo_a_part(tmp_path / "out")
    hub.log.clear()
    done(job("--adapter", "acme/lora", engine="paged"))
    assert hub.log == [] and read_output(tmp_path / "out").equals(expected)
    undo_a_part(tmp_path / "out")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done(job("--model", tiny, "--adapter", adapter, engine="paged"))
    assert read_output(tmp_path / "out").equals(expected)
    undo_a_part(tmp_path / "out")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    message = refusal(job("--adapter", "acme/lora@main", engine="paged"))
    assert "--adapter was ['acme/lora'], now ['acme/lora@main'], and the contents differ. Use a new --output" in message
    done(job("--adapter", f"https://huggingface.co/acme/lora/tree/{first}", engine="paged"))


def test_only_its_header_is_fetched_to_look_at_it(hub: Hub, repo: Repo, run_job: RunJob, tmp_path: Path) -> None:
    repo.commit({"optimizer.pt": b"x", "checkpoint-5/adapter_model.safetensors": b"x"})
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])
    result = done(run_job("preview", "--adapter", "acme/lora", "--dataset", data, "--no-chat"))
    assert "acme/tiny with acme/lora in" in result.stdout
    asked = hub.requests("GET /cdn/")
    assert asked and sum(item.sent for item in asked) < 4000
    assert "optimizer.pt" not in fetched(hub)


def test_refusals_name_the_option(hub: Hub, repo: Repo, job: RunJob, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--adapter acme/none: there is no such directory, and the Hub shows you no model" in refusal(
        job("--adapter", "acme/none")
    )
    num_asked = len(hub.requests(""))
    message = refusal(job("--adapter", "lora"))
    assert "--adapter lora: there is no such directory here, and an adapter of the Hub is OWNER/NAME" in message
    assert len(hub.requests("")) == num_asked, "a Hub that does not answer would be waited for"
    message = refusal(job("--adapter", "acme/lora@v9"))
    assert "--adapter acme/lora@v9 has no branch, tag or commit 'v9' on the Hub. Check what follows the @." in message
    message = refusal(job("--model", "acme/tiny", "--adapter", "acme/tiny"))
    assert "--adapter acme/tiny has no adapter_config.json, so it is not an adapter. It is a whole model" in message
    message = refusal(job("--model", "acme/lora"))
    assert "is an adapter (LoRA or the like), not a whole model. Give it as --adapter acme/lora;" in message
    assert "--model is missing: a Hub id or a directory." in refusal(job())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "--adapter acme/lora@v9" in refusal(job("--adapter", "acme/lora@v9"))


def test_a_model_that_is_not_there_any_more_is_to_be_named(tiny: Path, job: RunJob, tmp_path: Path) -> None:
    adapter = make_adapter(tiny, tmp_path / "a", "/data/models/gone")
    message = refusal(job("--adapter", adapter))
    assert f"--adapter {adapter} was trained on /data/models/gone, which is not the directory of a model" in message
    result = done(job("--adapter", adapter, "--model", tiny))
    assert f"adapter {adapter} was trained on /data/models/gone, and --model is {tiny}; its layers fit" in result.stderr
    other = make_adapter(tiny, tmp_path / "b", "acme/other")
    message = refusal(job("--adapter", adapter, "--adapter", other))
    assert f"name different models: /data/models/gone ({adapter}), acme/other ({other}). Give --model." in message


def test_the_example_runs(
    run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_model(chat=True)
    adapter = make_adapter(base, tmp_path / "a")
    monkeypatch.chdir(Path(__file__).parents[1])
    args = ["--config", "scripts/examples/adapters/verdicts.toml", "--adapter", adapter, "--output", tmp_path / "out"]
    done(run_job("run", *args, "--limit", 4, "--engine", "fake"))
    assert json.loads(run_job("status", tmp_path / "out", "--json").stdout)["adapters"] == [str(adapter)]
