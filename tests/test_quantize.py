"""Layers in 8 bits: what they compute against their own dequantized weights, whole models, two processes, and runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from job.config import EngineConfig
from job.engine.fit.shape import shape_of
from job.engine.model.loading import LoadedModel
from job.engine.model.precision import Precision
from job.engine.model.quantized import LARGEST, Float8Linear, Int8Linear, QuantizedLinear, quantize
from job.engine.paged.cuda.fused_trials import input_of
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from job.errors import UsageError
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.tasks import Score
from tests import serving
from tests.conftest import Result
from tests.ranks import Ranks
from tests.serving import complete
from tests.test_run import read_output, write_jsonl

SCHEMES = {"fp8": Float8Linear, "int8": Int8Linear}
TOLERANCE = {"fp8": 0.2, "int8": 0.05}
"""Of scores, in their standard deviations. A product in fp8 is off by 3 % of its standard deviation."""


def load(model_dir: Path, scheme: str | None, dtype: str = "float32") -> LoadedModel:
    """Return a model that the job has quantized in this process."""
    return serving.load(model_dir, dtype, quantize=scheme)[0]


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fp8_is_the_product_of_rounded_numbers(dtype: torch.dtype) -> None:
    """Rows of very different sizes each have a scale of their own, and a row of zeros stays one."""
    linear = nn.Linear(64, 48).to(dtype).requires_grad_(False)
    linear.weight[3] *= 1e-3
    linear.weight[5] = 0
    layer = Float8Linear(linear, linear.weight, linear.bias)
    values = numbers(2, 7, 64, dtype=dtype)
    values[0, 1] *= 1e3
    values[1, 2] = 0
    wide = values.float()
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(1e-30)
    rounded = (wide / scale).to(torch.float8_e4m3fn).float() * scale
    expected = rounded @ (layer.weight_q.float() * layer.scale).T + linear.bias.float()
    found = layer(values)
    assert found.dtype == dtype and found.shape == (2, 7, 48)
    size = expected.abs().amax(-1, keepdim=True)
    assert ((found.float() - expected).abs() <= 2 * torch.finfo(dtype).eps * size + 1e-6).all()
    assert torch.allclose(layer.weight_q.float() * layer.scale, linear.weight.float(), rtol=2**-4, atol=1e-4)


@pytest.mark.parametrize(("num_inputs", "num_groups"), [(128, 2), (96, 1)])
def test_int8_is_the_product_with_dequantized_weights(num_inputs: int, num_groups: int) -> None:
    linear = nn.Linear(num_inputs, 24).requires_grad_(False)
    layer = Int8Linear(linear, linear.weight, linear.bias)
    assert layer.weight_q.shape == (24, num_groups, num_inputs // num_groups) and layer.weight_q.dtype == torch.int8
    error = (layer.dequantized() - linear.weight).abs().reshape(24, num_groups, -1)
    assert (error <= 0.5001 * layer.scale).all()
    values = numbers(5, num_inputs)
    assert torch.equal(layer(values), nn.functional.linear(values, layer.dequantized()) + linear.bias)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_layers_are_quantized(tiny_model: Callable[..., Path], scheme: str) -> None:
    """Not the output layer, the embedding or norms; and a cast of the model leaves 8 bits alone."""
    model = load(tiny_model("llama"), scheme, "bfloat16").module
    quantized = {name for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    whole = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    assert quantized == {name for name, part in whole.named_modules() if type(part) is nn.Linear} - {"lm_head"}
    assert type(model.lm_head) is nn.Linear and model.lm_head.weight.dtype == torch.bfloat16
    model.to(torch.float32)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight_q.dtype == {"fp8": torch.float8_e4m3fn, "int8": torch.int8}[scheme]


def test_routers_and_odd_sizes_stay(tiny_model: Callable[..., Path]) -> None:
    """In fp8, both sizes of a weight must be multiples of 16."""
    model = nn.Module()
    model.layers = nn.ModuleList(
        [nn.ModuleDict({"gate": nn.Linear(32, 16), "up": nn.Linear(32, 24), "down": nn.Linear(32, 16)})]
    )
    quantize(model, "fp8", torch.device("cpu"), torch.float32)
    kinds = {name: type(part) for name, part in model.layers[0].items()}
    assert kinds == {"gate": nn.Linear, "up": nn.Linear, "down": Float8Linear}
    with pytest.raises(UsageError, match=r"no linear layer that can be quantized .*multiples of 16.*Leave it out"):
        quantize(nn.Sequential(nn.Linear(32, 16)), "fp8", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory_is_what_the_arithmetic_says(tiny_model: Callable[..., Path], scheme: str) -> None:
    model = load(tiny_model("llama"), scheme, "bfloat16").module
    shape = shape_of(model.config)
    assert shape is not None
    held = sum(part.nbytes for part in model.parameters())
    held += sum(part.scale.nbytes for part in model.modules() if isinstance(part, Int8Linear))
    assert shape.bytes_of_process(1, Precision(dtype="bfloat16", quantization=scheme)) == held


def test_the_trial_of_a_delayed_rotation_takes_quantized_layers(tiny_model: Callable[..., Path]) -> None:
    """It made its numbers like the first weight, which may be in fp8."""
    attention = load(tiny_model("llama"), "fp8").module.model.layers[0].self_attn
    like = input_of(attention)
    assert like.dtype == torch.float32 and like.shape[1] == attention.config.hidden_size


def scores(model: LoadedModel, job: dict[str, Any]) -> list[Any]:
    """Return what the paged engine gives for a job of ``engine_process``."""
    replica = Replica(read_process_info({}, 1))
    shapes, reason = check_support(model, replica)
    assert reason is None, reason
    engine = PagedEngine(model, shapes, EngineConfig(), replica)
    task = Score(choice_ids=tuple(map(tuple, job["choices"])))
    return [generation.numbers for generation in complete(engine, job["prompts"], task)]


def test_two_processes_differ_by_rounding_alone(tiny_model: Callable[..., Path], two_ranks: Ranks) -> None:
    """Each rank has scales of its own for its part of the inputs, so the sum is rounded in another way."""
    jobs = [
        {
            "model": str(tiny_model("llama")),
            "model_config": {"quantize": scheme},
            "prompts": [[5, 6, 7, 8], list(range(20, 60)), [9]],
            "choices": [[11, 12, 13], [14], [15, 16]],
        }
        for scheme in SCHEMES
    ]
    outputs = two_ranks.run(dict(zip(SCHEMES, jobs, strict=True)))
    dense = torch.tensor(scores(load(tiny_model("llama"), None), jobs[0]))
    for (scheme, output), job in zip(outputs.items(), jobs, strict=True):
        one, two = torch.tensor(scores(load(tiny_model("llama"), scheme), job)), torch.tensor(output["scores"])
        error = (one - dense).abs().mean()
        assert 0 < error < TOLERANCE[scheme] * dense.std(), f"{scheme} changes something, but not much"
        assert (one - two).abs().mean() <= 2 * error, scheme


def test_a_run_is_of_its_quantization(
    run_job: Callable[..., Result], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    data, out = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"word {i}"} for i in range(3)]), tmp_path / "out"
    args = ["--model", tiny_model("llama"), "--dataset", data, "--output", out, "--max-new-tokens", 3]
    args += ["--prompt-column", "prompt"]
    assert run_job("run", *args, "--quantize", "int8").exit_code == 0
    assert json.loads((out / "manifest.json").read_text())["identity"]["model"]["quantize"] == "int8"
    assert read_output(out).num_rows == 3
    other = run_job("run", *args, "--quantize", "fp8")
    assert other.exit_code == 2 and '--quantize was "int8", now "fp8"' in other.stderr
    refused = run_job("run", *args, "--quantize", "int4")
    assert refused.exit_code == 2 and "int4 is not offered" in refused.stderr
