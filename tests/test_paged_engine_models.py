"""PagedEngine on what models differ in: windows, sinks, experts, latent attention, bfloat16; and what it leaves to
static batches.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from job.engine.duplicates import SharedCompletions
from job.engine.paged.cpu.linears import PackedLinear, RMSNorm, speed_up
from job.engine.paged.support import check_support
from job.engine.static.engine import StaticEngine
from tests.serving import (
    MODES,
    build_as_the_job_does,
    complete,
    expected_tokens,
    generate,
    innermost,
    load,
    make_engine,
    make_prompts,
    serve,
    tokens,
)

MAX_NEW_TOKENS = 40
"""From a prompt of 60 and more tokens over a border of pages, and past windows."""

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

VARIANTS: dict[str, dict[str, Any]] = {
    "window in all layers": {"name": "mistral", "sliding_window": 16},
    "window over pages": {"name": "mistral", "sliding_window": 40},
    "window in every other layer, soft-capped": {"name": "gemma2", "sliding_window": 40},
    "window in later layers": {
        "name": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 1,
    },
    "window that is not used": {"name": "qwen2", "use_sliding_window": False, "sliding_window": 16},
    "sinks": {"model_type": "gpt_oss", "head_dim": 32, "sliding_window": 16, **EXPERTS},
    "experts": {"model_type": "mixtral", "sliding_window": None, **EXPERTS},
    "latent attention": {"model_type": "deepseek_v3", "num_key_value_heads": 4},
    "one key-value head": {"model_type": "gpt_bigcode"},
    "fused projections": {"model_type": "phi3"},
    "learned positions": {"model_type": "gpt2"},
    "frequencies that change past all positions": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    },
}
"""What to make of ``tiny_model``: with name an architecture of ``tiny``, else a relative of its llama."""

LONG = {
    "model_type": "phi3",
    "original_max_position_embeddings": 128,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "short_factor": [1.1] * 16,
        "long_factor": [4.0] * 16,
    },
}
"""A model whose rotary frequencies are others in a batch with a row of more than 128 tokens."""

STATIC = {
    "bloom": {"model_type": "bloom"},  # ALiBi
    "mpt": {"model_type": "mpt"},  # ALiBi
    "diffllama": {"model_type": "diffllama"},  # two attentions per layer, which shows only when it is tried
    "phi3": LONG,
}
"""``model_type`` of what is served by static batches."""

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 arithmetic"
)


def long_prompts() -> list[list[int]]:
    """Return some of 60 tokens and more, two of which begin alike, and a short one."""
    prompts = [prompt for prompt in make_prompts() if len(prompt) >= 60]
    return [*prompts[:4], [5, 6, 7]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_long_rows_equal_transformers(tiny_model: Callable[..., Path], variant: str) -> None:
    """Alone and together, in chunks, with preemptions."""
    model_dir, prompts = tiny_model(**VARIANTS[variant]), long_prompts()
    expected = expected_tokens(model_dir, prompts, MAX_NEW_TOKENS)
    served = serve(model_dir)
    for mode in ("all rows", "few pages and chunks"):
        engine = make_engine(served, **MODES[mode])
        assert tokens(complete(engine, prompts, generate(max_new_tokens=MAX_NEW_TOKENS))) == expected


@pytest.mark.parametrize("model_type", STATIC)
def test_what_depends_on_more_than_a_token_and_its_position_is_served_by_static_batches(
    tiny_model: Callable[..., Path], model_type: str
) -> None:
    """One line says why, and the module works as before it was tried."""
    model_dir, prompts = tiny_model(**STATIC[model_type]), long_prompts()
    engine, notes = build_as_the_job_does(model_dir)
    assert isinstance(engine, SharedCompletions) and isinstance(innermost(engine), StaticEngine)
    (note,) = notes
    assert note.startswith(f"model type '{model_type}' is served by static batches, which are slower: its ")
    assert tokens(complete(engine, prompts)) == expected_tokens(model_dir, prompts, 12)


def test_frequencies_that_depend_on_the_longest_row_are_served_where_no_row_is_long(
    tiny_model: Callable[..., Path],
) -> None:
    model, replica = load(tiny_model(**LONG), max_model_len=128)
    assert check_support(model, replica)[1] is None
    model, replica = load(tiny_model(**LONG), max_model_len=129)
    assert check_support(model, replica)[1] == (
        "its rotary frequencies depend on the longest row of the batch (not with --max-model-len 128)"
    )


def types_of(module: Any) -> set[type]:
    """Return the classes of all parts of a model."""
    return {type(part) for part in module.modules()}


@needs_bfloat16
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_bfloat16_tokens_differ_from_float32_only_in_near_ties(tiny_model: Callable[..., Path], name: str) -> None:
    """With the kernels for CPUs. A token may be another than in float32 if their logits are closer than twice the
    error of transformers' own logits in bfloat16: each of the two may be off by that much.
    """
    # With weights as wide as in the other tests bfloat16 changes the attention itself: most tokens are near ties.
    model_dir = tiny_model(name, dtype=torch.bfloat16, initializer_range=0.05)
    served, prompts = serve(model_dir, "bfloat16"), make_prompts()
    generations = complete(make_engine(served, **MODES["few pages and chunks"]), prompts, generate(max_new_tokens=24))
    assert PackedLinear in types_of(served.model.module)
    exact, rounded = (
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16)
    )
    lost, leads, error = [], [], 0.0
    for prompt, generation in zip(prompts, generations, strict=True):
        ids = torch.tensor([prompt + list(generation.token_ids)])
        with torch.inference_mode():
            logits = exact(ids).logits[0, len(prompt) - 1 : -1]
            error = max(error, float((logits - rounded(ids).logits[0, len(prompt) - 1 : -1].float()).abs().max()))
        best = logits.topk(2).values
        lost += (best[:, 0] - logits.gather(1, ids[0, len(prompt) :, None])[:, 0]).tolist()
        leads += (best[:, 0] - best[:, 1]).tolist()
    assert max(lost) <= 2 * error
    assert sum(lead > 2 * error for lead in leads) > 0.7 * len(leads), "else the bound would allow nearly any token"


@needs_bfloat16
def test_linear_layers_and_norms_are_replaced_where_they_agree(tiny_model: Callable[..., Path]) -> None:
    """All of llama's are; the logits differ by a rounding."""
    model, _ = load(tiny_model("llama", dtype=torch.bfloat16, initializer_range=0.05), "bfloat16")
    ids = torch.tensor([make_prompts()[0]])
    with torch.inference_mode():
        before = model.module(ids).logits.float()
        speed_up(model.module)
        after = model.module(ids).logits.float()
    assert {PackedLinear, RMSNorm} <= types_of(model.module)
    assert nn.Linear not in types_of(model.module)
    assert "LlamaRMSNorm" not in {kind.__name__ for kind in types_of(model.module)}
    assert float((after - before).norm() / before.norm()) < 0.02


@needs_bfloat16
def test_a_norm_that_computes_something_else_is_left_alone(tiny_model: Callable[..., Path]) -> None:
    """Gemma's adds 1 to its weight, under a name like that of the others."""
    model, _ = load(tiny_model("gemma2", dtype=torch.bfloat16, initializer_range=0.05), "bfloat16")
    speed_up(model.module)
    assert PackedLinear in types_of(model.module)
    assert RMSNorm not in types_of(model.module)
    assert "Gemma2RMSNorm" in {kind.__name__ for kind in types_of(model.module)}


def test_nothing_is_replaced_in_float32(tiny_model: Callable[..., Path]) -> None:
    model, _ = load(tiny_model("llama"))
    before = types_of(model.module)
    speed_up(model.module)
    assert types_of(model.module) == before


def test_what_cannot_be_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regression: a processor without bfloat16 arithmetic, or a norm without an epsilon, ended the run."""

    def refuse(*args: Any) -> None:
        raise RuntimeError("bf16 path needs a cpu with support for bf16")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse, raising=False)
    model = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8)).to(torch.bfloat16)
    assert model[1].eps is None
    before = types_of(model)
    speed_up(model)
    assert types_of(model) == before


@needs_bfloat16
def test_a_linear_layer_with_a_bias_and_its_subclasses() -> None:
    """What DeepSpeed puts in a layer's place is no ``nn.Linear`` any more, and computes more than a product."""

    class Reduced(nn.Linear):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(values)

    torch.manual_seed(0)
    model = nn.ModuleDict({"plain": nn.Linear(64, 32), "reduced": Reduced(64, 32)}).to(torch.bfloat16)
    values = torch.randn(1, 5, 64).to(torch.bfloat16)
    with torch.inference_mode():
        before = {name: layer(values).float() for name, layer in model.items()}
        speed_up(model)
        assert [type(layer) for layer in model.values()] == [PackedLinear, Reduced]
        for name, layer in model.items():
            assert torch.allclose(layer(values).float(), before[name], atol=math.ldexp(1, -6), rtol=0.02)
