"""What loading a model takes of the host's memory, and what it leaves of the files' tensors."""

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from job.engine.model.placing import move_to
from job.errors import UsageError
from tests.conftest import finish, start_processes
from tests.serving import load

SCRIPT = Path(__file__).parents[1] / "scripts/benchmarks/loading.py"


def test_a_process_of_two_holds_only_its_share(tmp_path: Path) -> None:
    """A regression: a float32 checkpoint that runs in 16 bits was cast as a whole in the memory of each process.

    Its share is half, and a cast of the whole would be as much again. What DeepSpeed takes itself is some 15 MiB.
    """
    runpy.run_path(str(SCRIPT))["make_model"](tmp_path, num_layers=1)
    results = finish(start_processes([SCRIPT, tmp_path, "bfloat16", 2, "", "", "process"], 2))
    assert [result.exit_code for result in results] == [0, 0], results
    for figures in (json.loads(result.stdout.splitlines()[-1]) for result in results):
        assert figures["weights"] < figures["private"] - figures["before"] < 1.5 * figures["weights"], figures


def test_slices_become_contiguous_and_what_is_tied_stays_tied(tiny_model: Callable[..., Path]) -> None:
    """AutoTP leaves views of the files: columns of a matrix, in which the numbers of a row are far apart."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama", tie_word_embeddings=True))
    weight = model.model.layers[0].mlp.down_proj.weight
    columns = weight.detach().clone()[:, 100:200]
    weight.data = weight.data[:, 100:200]
    assert not weight.is_contiguous()
    move_to(model, torch.device("cpu"), torch.bfloat16)
    assert weight.is_contiguous() and weight.dtype == torch.bfloat16
    assert torch.equal(weight, columns.bfloat16())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_index_of_several_files_gives_the_same_model(
    tiny_model: Callable[..., Path], tmp_path: Path, dtype: str
) -> None:
    whole = AutoModelForCausalLM.from_pretrained(tiny_model())
    whole.save_pretrained(tmp_path, max_shard_size="300kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found, _ = load(tmp_path, dtype)
    expected = {name: value.to(found.dtype) for name, value in whole.state_dict().items()}
    assert found.module.state_dict().keys() == expected.keys()
    for name, value in found.module.state_dict().items():
        assert torch.equal(value, expected[name]), name
    rotary = found.module.model.rotary_emb.inv_freq
    assert torch.equal(rotary, whole.model.rotary_emb.inv_freq) and rotary.dtype == torch.float32


def test_weights_that_do_not_fit_the_configuration_are_named(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """A regression: the message was transformers' "For details look at the above report", which nobody sees."""
    shutil.copytree(tiny_model(), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(4, 4)
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"has 1 weights of another shape .*: \[4, 4\], not \[256, 128\]\. Copy"):
        load(tmp_path / "model")


def test_weights_that_have_no_place_are_told(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """A configuration with fewer layers than the checkpoint gave another model, without a word."""
    shutil.copytree(tiny_model(), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["num_hidden_layers"] -= 1
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    [note] = load(tmp_path / "model")[0].notes
    last = f"model.layers.{config['num_hidden_layers']}."
    assert re.match(rf"the model has no place for \d+ of its weights, which are left out: {last}\S+, {last}", note)
    assert load(tiny_model())[0].notes == ()


def test_float64_weights_are_computed_in_the_dtype_of_the_run(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model(), tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    wide = {name: tensor.double() for name, tensor in weights.items()}
    save_file(wide, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    found = load(tmp_path / "model")[0].module.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())
