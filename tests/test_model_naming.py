"""What ``--model`` may name, what is said if it names something else, and how long its prompts may be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from job.config import ModelConfig
from job.engine.model.info import inspect_model
from job.engine.model.naming import check_name
from job.errors import UsageError
from job.remote.model_files import ModelFiles
from tests.conftest import Result
from tests.test_run import read_output, write_jsonl

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}


def refusal(model: Path | str, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        check_name(str(model))
        config, files = ModelConfig(model=str(model), **options), ModelFiles(name=str(model))
        inspect_model(config, files, torch.device("cpu"), 1, needs_weights=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_the_directory_of_a_model_is_named(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """All of these were "Unrecognized model" or "there is no such directory"."""
    assert refusal(tiny_model() / "config.json").endswith(f"the directory of a model. Name it: {tiny_model()}.")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert "Convert it to a directory of safetensors." in refusal(tmp_path / "m.gguf")
    assert "there is no such directory. Check the path." in refusal(tmp_path / "none")
    assert refusal("$MODELS/m").endswith("it cannot be a Hub id. Write out the variable: nothing replaces it here.")
    assert refusal("my model").endswith("it cannot be a Hub id. Check the path.")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert "has no config.json" in refusal(adapter) and "save_pretrained" in refusal(adapter)
    (adapter / "adapter_config.json").write_text("{}")
    assert "is an adapter (LoRA or the like), not a whole model. Give it as --adapter" in refusal(adapter)


def test_an_adapter_beside_the_weights_is_refused_if_it_would_be_loaded(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With peft, transformers loaded it on top of the model, whose identity stayed the same."""
    shutil.copytree(tiny_model(), tmp_path / "m")
    (tmp_path / "m" / "adapter_config.json").write_text("{}")
    config, files = ModelConfig(model=str(tmp_path / "m")), ModelFiles(name=str(tmp_path / "m"))
    monkeypatch.setattr("job.engine.model.naming.find_spec", lambda name: None)
    inspect_model(config, files, torch.device("cpu"), 1)  # without peft, it is only a file
    monkeypatch.setattr("job.engine.model.naming.find_spec", lambda name: name == "peft" or None)
    assert "Move it to another directory" in refusal(tmp_path / "m")


@pytest.mark.parametrize("inside", ["checkpoint-500", "snapshots/0a1b2c"])
def test_the_directory_inside_is_proposed(tiny_model: Callable[..., Path], tmp_path: Path, inside: str) -> None:
    shutil.copytree(tiny_model(), tmp_path / "m" / inside)
    assert refusal(tmp_path / "m").endswith(f"Perhaps you mean {tmp_path / 'm' / inside}.")


@pytest.mark.parametrize("name", ["org/name", "name"])
def test_a_model_of_the_hub_without_a_network_says_how_to_fetch_it(
    run_job: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}])
    result = run_job("run", "--model", name, "--dataset", data, "--output", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (
        2,
        f"job: --model {name}: there is no such directory, and this name is not in the cache (HF_HOME), and "
        f"HF_HUB_OFFLINE is set. Where there is a network, run 'hf download {name}' with the same HF_HOME.\n",
    )


def test_yarn_stretches_a_model_beyond_its_positions(
    run_job: Callable[..., Result], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """As Qwen2.5's card has it: max_position_embeddings is that of the pretraining. Both engines agree there."""
    shutil.copytree(tiny_model(), tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config |= {"rope_parameters": YARN, "max_position_embeddings": 64}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "abc" * 60}, {"prompt": "x" * 10}])
    args = ["run", "--model", tmp_path / "m", "--dataset", data, "--dtype", "float32", "--max-new-tokens", 8]
    tables = []
    for engine in ("paged", "static"):
        output = tmp_path / engine
        result = run_job(*args, "--engine", engine, "--max-model-len", 256, "--output", output)
        assert result.exit_code == 0, result.stderr
        tables.append(read_output(output))
    assert tables[0]["completion"].equals(tables[1]["completion"])
    assert "the model has only 256 positions" in refusal(tmp_path / "m", max_model_len=257)
    config |= {"rope_parameters": YARN | {"original_max_position_embeddings": 32}}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert "the model has only 128 positions" in refusal(tmp_path / "m", max_model_len=200)
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert "the model has only 64 positions" in refusal(tmp_path / "m", max_model_len=65)
