"""Layers in 8 bits: what they compute against their own dequantized weights, whole models, two processes, and runs."""

import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from job.cli.foreign import advice_on
from job.config import EngineConfig, ModelConfig
from job.engine.fit.shape import shape_of
from job.engine.model import fp8, quantized
from job.engine.model.fp8 import LARGEST, check_device, product_dtype
from job.engine.model.layers_in_8_bits import quantize
from job.engine.model.loading import LoadedModel
from job.engine.model.overflow import find_overflow
from job.engine.model.precision import Precision
from job.engine.model.quantized import (
    LAYERS,
    Float8Linear,
    Int8Linear,
    QuantizedLinear,
    from_int8,
    may_merge,
    to_int8,
)
from job.engine.model.quantized_experts import QuantizedExperts
from job.engine.model.quantized_experts import _whole as all_at_once
from job.engine.paged.cuda.fused_trials import input_of
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from job.errors import UsageError
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from job.tasks import Score
from tests import serving
from tests.conftest import Result
from tests.headed import make_headed
from tests.quantized import MODELS
from tests.ranks import Ranks
from tests.serving import Served, complete, make_engine, make_prompts, tokens
from tests.test_run import read_output, write_jsonl

CPU = torch.device("cpu")
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
    layer = Float8Linear.of(linear, CPU, dtype)
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


def test_a_device_that_multiplies_into_bfloat16_alone_serves_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch 2.11 does so for rows with scales of their own, on Ada and Blackwell; float16 is the default there."""
    multiply = torch._scaled_mm

    def refusing(*args: Any, out_dtype: torch.dtype, **options: Any) -> torch.Tensor:
        if out_dtype != torch.bfloat16:
            raise ValueError("Only bf16 high precision output types are supported for row-wise scaling.")
        return multiply(*args, out_dtype=out_dtype, **options)

    linear = nn.Linear(32, 16).half()
    layer, values = Float8Linear.of(linear, CPU, torch.float16), torch.randn(3, 32).half()
    expected = layer(values)
    product_dtype.cache_clear()
    monkeypatch.setattr(torch, "_scaled_mm", refusing)
    try:
        found = layer(values)
        assert product_dtype(torch.float16, CPU) == torch.bfloat16
    finally:
        product_dtype.cache_clear()
    assert found.dtype == torch.float16 and (found - expected).abs().max() <= 2**-7 * expected.abs().max()


def test_a_gpu_whose_product_fails_is_refused_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fp8, "product_dtype", fail)
    with pytest.raises(UsageError, match=r"in fp8 failed: no kernel image is available\. Use --quantize int8"):
        check_device("fp8", torch.device("cuda"))
    check_device("int8", torch.device("cuda"))


@pytest.mark.parametrize(("num_inputs", "num_groups"), [(128, 2), (96, 1)])
def test_int8_is_the_product_with_dequantized_weights(num_inputs: int, num_groups: int) -> None:
    linear = nn.Linear(num_inputs, 24).requires_grad_(False)
    layer = Int8Linear.of(linear, CPU, torch.float32)
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


def test_routers_stay(tiny_model: Callable[..., Path]) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"gate": nn.Linear(32, 16), "up": nn.Linear(20, 24)})])
    quantize(model, "fp8", CPU, torch.float32)
    assert {name: type(part) for name, part in model.layers[0].items()} == {"gate": nn.Linear, "up": Float8Linear}
    with pytest.raises(UsageError, match=r"no linear layer that can be quantized.* Leave it out"):
        quantize(nn.Sequential(nn.Linear(32, 16)), "fp8", CPU, torch.float32)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sizes", [(20, 24), (96, 7), (1, 1)])
def test_sizes_of_any_kind(scheme: str, sizes: tuple[int, int]) -> None:
    """Those that are no multiple of 16, for fp8, or of the group, for int8."""
    linear = nn.Linear(*sizes).requires_grad_(False)
    values = numbers(3, sizes[0])
    layer = SCHEMES[scheme].of(linear, CPU, torch.float32)
    found = layer(values)
    assert layer.weight.shape == linear.weight.shape, "some models read it"
    assert (layer.weight - linear.weight).abs().max() <= 2**-4 * linear.weight.abs().max()
    assert found.shape == (3, sizes[1]) and found.is_contiguous()
    assert (found - linear(values)).abs().max() <= TOLERANCE[scheme] * (linear(values).std() if sizes[1] > 1 else 1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_is_the_same_in_parts(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = nn.Linear(64, 40).requires_grad_(False)
    whole = SCHEMES[scheme].of(linear, CPU, torch.float32)
    monkeypatch.setattr(quantized, "PART", 64 * 16)
    parts = SCHEMES[scheme].of(linear, CPU, torch.float32)
    assert torch.equal(parts.weight_q.float(), whole.weight_q.float()) and torch.equal(parts.scale, whole.scale)


def test_small_weights_in_float16_keep_their_precision() -> None:
    """Their scales are below float16's smallest normal number, which once was the smallest scale."""
    weight = (numbers(64, 64) * 1e-4).half()
    error = from_int8(*to_int8(weight, torch.float16)).float() - weight.float()
    assert error.norm() < 0.01 * weight.float().norm()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_does_not_depend_on_others(scheme: str) -> None:
    """Scales are of a token: an outlier beside it changes nothing. (A scale of all tokens would.)"""
    linear = nn.Linear(128, 48).requires_grad_(False)
    layer, values = SCHEMES[scheme].of(linear, CPU, torch.float32), numbers(40, 128)
    alone = torch.cat([layer(row[None]) for row in values])
    beside = values.clone()
    beside[7, 3], beside[9, 5], beside[11, 0] = 1e6, torch.inf, torch.nan
    found, others = layer(beside), [idx for idx in range(40) if idx not in (7, 9, 11)]
    assert torch.allclose(found[others], alone[others], rtol=1e-5, atol=1e-5)
    assert not found[[9, 11]].isfinite().any(), "what is not finite is not hidden"
    assert found[7].isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_found(tiny_model: Callable[..., Path], scheme: str, bad: float) -> None:
    """By the check of a loaded model, as in one that is not quantized."""
    model = load(tiny_model("llama"), scheme)
    layer = model.module.model.layers[0].mlp.down_proj
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False).requires_grad_(False)
    linear.weight[5, 100] = bad
    model.module.model.layers[0].mlp.down_proj = SCHEMES[scheme].of(linear, CPU, torch.float32)
    assert find_overflow(model, Replica(read_process_info({}, 1))) is not None


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_merged_layers_are_the_same_to_the_bit(scheme: str, has_bias: bool) -> None:
    """Each keeps its scales, and none takes memory twice."""
    linears = [nn.Linear(128, size, bias=has_bias).requires_grad_(False) for size in (64, 16, 32)]
    linears[1].weight *= 1e-3
    layers = [SCHEMES[scheme].of(linear, CPU, torch.float32) for linear in linears]
    values = numbers(2, 9, 128)
    expected = torch.cat([layer(values) for layer in layers], -1)
    assert may_merge(layers)
    merged = QuantizedLinear.merged(layers)
    assert torch.equal(merged(values), expected)
    assert torch.equal(torch.cat([layer(values) for layer in layers], -1), expected)
    assert [layer.weight_q.untyped_storage().data_ptr() for layer in layers] == [
        merged.weight_q.untyped_storage().data_ptr()
    ] * 3
    odd = SCHEMES[scheme].of(nn.Linear(128, 24, bias=has_bias).requires_grad_(False), CPU, torch.float32)
    assert may_merge([layers[0], odd]) == (scheme == "int8"), "not if one is filled up with zeros"
    other = SCHEMES["int8" if scheme == "fp8" else "fp8"].of(linears[0], CPU, torch.float32)
    assert not may_merge([layers[0], other])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_experts_compute_with_dequantized_weights(tiny_model: Callable[..., Path], name: str, scheme: str) -> None:
    """Of either layout, with biases; expert by expert, or all of a layer at once as on a GPU."""
    directory = tiny_model("llama", **{"model_type": name, **MODELS[name]})
    module = load(directory, scheme, "float32").module
    whole = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, experts_implementation="eager")
    own = dict(whole.named_modules())
    for part_name, part in module.named_modules():
        if isinstance(part, QuantizedExperts):
            parent, _, tensor = part_name.rpartition(".")
            dense = getattr(own[parent], tensor)
            assert part[:].shape == dense.shape and torch.equal(part[1], part[:][1])
            assert 0 < (part[:] - dense).abs().max() <= {"fp8": 2**-3, "int8": 0.01}[scheme] * dense.abs().max()
            dense.data = part[:]
    for layer_name, layer in own.items():
        quantized = module.get_submodule(layer_name)
        if isinstance(quantized, QuantizedLinear):
            layer.forward = quantized.forward
    ids = torch.arange(3, 63, 5)[None]
    with torch.inference_mode():
        expected = whole(input_ids=ids).logits
        found = module(input_ids=ids).logits
        for part in module.modules():
            if isinstance(getattr(part, "down_proj", None), QuantizedExperts):
                part.forward = all_at_once(part, ("gate_up_proj", "down_proj"))
        at_once = module(input_ids=ids).logits
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert torch.allclose(at_once, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_memory_is_what_the_arithmetic_says(tiny_model: Callable[..., Path], scheme: str, name: str) -> None:
    """And what the user is told."""
    options = {"model_type": name, **MODELS[name]} if name in MODELS else {}
    model = load(tiny_model("llama", **options), scheme, "bfloat16")
    shape = shape_of(model.module.config)
    assert shape is not None
    parts = [part for part in model.module.modules() if isinstance(part, QuantizedLinear | QuantizedExperts)]
    quantized = sum(part.num_bytes for part in parts)
    inside = {id(parameter) for part in parts for parameter in part.parameters()}
    held = quantized + sum(part.nbytes for part in model.module.parameters() if id(part) not in inside)
    scales = sum(part.scale.nbytes for part in parts) if scheme == "fp8" else 0  # 4 bytes a row, which are not counted
    assert shape.bytes_of_process(1, Precision(dtype="bfloat16", quantization=scheme)) == held - scales
    (told,) = model.notes
    assert f"are in {scheme}: {held / 1e6:,.0f} MB in place of {2 * shape.num_params / 1e6:,.0f}" in told


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


PROMPTS = [[5, 6, 7, 8], list(range(20, 60)), [9]]


def test_two_processes_differ_by_rounding_alone(tiny_model: Callable[..., Path], two_ranks: Ranks) -> None:
    """Each rank has scales of its own for its part of the inputs, so the sum is rounded in another way."""
    cut = {"llama": tiny_model("llama")}
    cut["gpt_oss"] = tiny_model("llama", **{"model_type": "gpt_oss", **MODELS["gpt_oss"]})
    jobs = {
        f"{name} {scheme}": {
            "model": str(directory),
            "model_config": {"quantize": scheme},
            "prompts": PROMPTS,
            "choices": [[11, 12, 13], [14], [15, 16]],
        }
        for name, directory in cut.items()
        for scheme in SCHEMES
    }
    outputs = two_ranks.run(jobs)
    for key, job in jobs.items():
        name, scheme = key.split()
        dense = torch.tensor(scores(load(cut[name], None), job))
        one, two = torch.tensor(scores(load(cut[name], scheme), job)), torch.tensor(outputs[key]["scores"])
        error = (one - dense).abs().mean()
        most = TOLERANCE[scheme] * (2 if name == "gpt_oss" else 1)  # a router may choose another expert
        assert 0 < error < most * dense.std(), f"{key} changes something, but not much"
        assert (one - two).abs().mean() <= 2 * error, key


def test_tokens_do_not_depend_on_the_batch(tiny_model: Callable[..., Path]) -> None:
    """In fp8, of prompts alone, all at once, in chunks, and computed again after preemptions."""
    model, replica = serving.load(tiny_model("llama"), quantize="fp8")
    shapes, _ = check_support(model, replica)
    served, prompts = Served(model, shapes, replica), make_prompts()
    found = [tokens(complete(make_engine(served, **mode), prompts)) for mode in serving.MODES.values()]
    assert found == [found[0]] * len(found)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("name", "task"), [("bert", "embed"), ("bert", "classify"), ("llama", "classify")])
def test_models_with_other_heads(tmp_path: Path, name: str, task: str, scheme: str) -> None:
    """Encoders, too; what classifies or pools stays as it is."""
    auto_class = {"embed": AutoModel, "classify": AutoModelForSequenceClassification}[task]
    directory = make_headed(tmp_path, name, auto_class)
    ids = torch.arange(3, 63, 5)[None]
    with torch.inference_mode():
        dense, found = (
            serving.load(directory, task=task, quantize=each)[0].module(
                input_ids=ids, attention_mask=torch.ones_like(ids)
            )
            for each in (None, scheme)
        )
    assert 0 < (found.logits - dense.logits).abs().mean() <= 2 * TOLERANCE[scheme] * dense.logits.std()
    model = serving.load(directory, task=task, quantize=scheme)[0].module
    names = [key for key, part in model.named_modules() if isinstance(part, QuantizedLinear)]
    assert names and not re.search("score|classifier|pooler", " ".join(names))


def test_what_is_replaced_is_freed_before_the_next_layer() -> None:
    """All dense layers were held until the last was quantized."""
    linears = [nn.Linear(32, 32).requires_grad_(False) for _ in range(3)]
    model = nn.Module()
    model.layers = nn.ModuleList(linears)
    alive = [weakref.ref(linear) for linear in linears]
    linears.clear()
    seen: list[int] = []
    of = Int8Linear.of.__func__

    class Watching(Int8Linear):
        @classmethod
        def of(cls, *args: Any) -> Any:
            seen.append(sum(ref() is not None for ref in alive))
            return of(cls, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, "int8", Watching)
        quantize(model, "int8", CPU, torch.float32)
    assert seen == [3, 2, 1]


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


@pytest.mark.parametrize(
    ("value", "line"),
    {
        "int4": "--quantize int4 is not offered: what 4 bits cost",
        "nf4": "Use int8 or fp8, or a model that was published in GPTQ, AWQ or MXFP4",
        "FP8": "--quantize is 'FP8'; it must be one of fp8, int8. Write fp8.",
        "bitsandbytes_8bit": "must be one of fp8, int8. Write int8.",
        "w8a8": "must be one of fp8, int8.",
    }.items(),
)
def test_other_values_are_refused_in_a_line(value: str, line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        ModelConfig(model="m", quantize=value)


def test_options_of_other_tools_are_answered() -> None:
    assert "int8 saves memory and is slower" in str(advice_on("--load-in-8bit"))
    assert "4 bits are not offered" in str(advice_on("--load_in_4bit"))
