"""Fused kernels and modules give what the model's own give: interpreted on a CPU, compiled on a GPU.

JOB_TEST_CASES=100 tries that many random shapes of each kernel instead of a few.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb
from transformers.models.llama.modeling_llama import LlamaAttention

from job.config import EngineConfig
from job.engine.logits.reductions import in_two_rounds
from job.engine.model.layers_in_8_bits import quantize
from job.engine.paged.attention.cache import FP8
from job.engine.paged.attention.interface import NAME, DelayedRotation, attending
from job.engine.paged.cuda import fused_launches as launches
from job.engine.paged.cuda.fused import fuse
from job.engine.paged.cuda.fused_modules import MergedLinear, Siblings
from job.engine.paged.cuda.fused_trials import largest_agrees, scaling_of
from job.engine.paged.cuda.launches import Pool, store_launch
from job.engine.paged.engine import PagedEngine
from job.engine.paged.support import check_support
from tests import plain_launches
from tests.interpreting import DEVICE
from tests.serving import complete, expected_tokens, generate, load, make_prompts, tokens

NUM_CASES = int(os.environ.get("JOB_TEST_CASES", "2"))

TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}
"""Relative to the largest value: the order of a sum in float32; four roundings to the eleven bits of float16."""

DTYPES = list(TOLERANCES)

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
ALL = "5 norms, 2 MLPs, 2 attention projections, 2 rotations, 2 residual sums"
FUSED = {
    "llama": ALL,
    "mistral": ALL,
    "qwen2": ALL,
    "granite": ALL,
    "smollm3": ALL,
    "qwen3": ALL.replace("5", "9"),  # norms of queries and keys
    "mixtral": "5 norms, 2 attention projections, 2 rotations, 2 residual sums",
    "qwen3_moe": "9 norms, 2 attention projections, 2 rotations, 2 residual sums",
    "olmo2": "9 norms, 2 MLPs, 2 attention projections, 2 rotations",  # norms after attention and MLP
    "gemma2": "9 norms, 2 MLPs, 2 attention projections, 2 rotations",
    "gemma3_text": "13 norms, 2 MLPs, 2 attention projections, 2 rotations",
    "phi3": "5 norms, 2 MLPs, 2 rotations",  # merged by its authors
    "glm4": "9 norms, 2 MLPs, 2 attention projections",  # rotates pairs, not halves
    "cohere": "2 MLPs, 2 attention projections",  # LayerNorm, pairs
    "stablelm": "2 MLPs, 2 attention projections, 2 rotations",  # LayerNorm, rotates a quarter of a head
    "gpt_neox": "2 rotations",  # one product, LayerNorm, no gate, rotates a quarter of a head
}
"""Architectures, and what is fused of them."""


def make(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Return a model whose norms and biases are not those of a fresh one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**COMMON, **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(DEVICE, dtype)


def logits_of(model: Any) -> torch.Tensor:
    """Return the logits of nine tokens."""
    ids = torch.arange(3, 93, 10, device=DEVICE)[None]
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    tolerance = TOLERANCES[expected.dtype]
    difference = float((found.double() - expected.double()).abs().max())
    assert difference <= tolerance * max(1.0, float(expected.abs().max()))


HALF = ["llama", "gemma2"] if NUM_CASES < 16 else list(FUSED)
"""Which of them are also tried in float16, where norms of different classes round differently."""


@pytest.mark.parametrize(("name", "dtype"), [(n, torch.float32) for n in FUSED] + [(n, torch.float16) for n in HALF])
def test_logits_stay(name: str, dtype: torch.dtype) -> None:
    model = make(name, dtype)
    expected = logits_of(model)
    assert fuse(model) == FUSED[name]
    assert_close(logits_of(model), expected)


@pytest.mark.parametrize("scheme", ["fp8", "int8"])
@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral"])
def test_quantized_layers_are_fused_as_well(name: str, scheme: str) -> None:
    """The products of one input are one, with the scales of each; what is fused is what is without 8 bits.

    Norms that round otherwise can change numbers in fp8. That merged products are equal to the bit is tested elsewhere.
    """
    model = make(name)
    quantize(model, scheme, torch.device(DEVICE), torch.float32)
    expected = logits_of(model)
    assert fuse(model) == FUSED[name]
    assert (logits_of(model) - expected).norm() <= 0.01 * expected.norm()


STORED = {"gemma2": 2, "llama": 2, "qwen3": 2, "gpt_neox": 0}
"""Architectures, and of how many layers the rotation is done by the kernel that stores keys."""


@pytest.mark.parametrize("name", ["gemma2"] if NUM_CASES < 16 else STORED)
def test_the_engine_gives_the_same_tokens(
    tiny_model: Callable[..., Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one step of several prompts, and in steps of single tokens, with plain attention over the cache."""
    prompts = [prompt[:20] for prompt in make_prompts()[:2]]
    model, replica = load(tiny_model(name))
    shapes, _ = check_support(model, replica)
    assert (f"{STORED[name]} rotations with the storing" in fuse(model.module)) == (STORED[name] > 0)
    plain_launches.use(monkeypatch)
    engine = PagedEngine(model, shapes, EngineConfig(kv_cache_memory=2**24, max_batch_rows=4), replica)
    generations = complete(engine, prompts, generate(max_new_tokens=4))
    assert tokens(generations) == expected_tokens(tiny_model(name), prompts, 4)


class LaunchCount(TorchDispatchMode):
    """Counts the kernels that operations launch on a device: all but views and allocations, and attention."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(part.alias_info is not None and not part.alias_info.is_write for part in func._schema.returns)
        self.total += not is_view and func.overloadpacket._qualified_op_name not in FREE
        return func(*args, **(kwargs or {}))


FREE = {f"aten::{name}" for name in ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "detach")}


class Attention:
    """Attends to nothing, and rotates without a launch of its own."""

    def rotate_next(self, rotation: Any) -> None:
        pass

    def __call__(self, layer_idx: int, query: torch.Tensor, *_: Any) -> torch.Tensor:
        return query.new_empty(query.shape)


def launches_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many kernels a step of a model launches, without attention and the storing of keys and values."""
    ids = torch.arange(3, 93, 10, device=DEVICE)[None]
    # In inference mode, casts and products would be counted before they are taken apart.
    with monkeypatch.context() as patch, torch.no_grad(), LaunchCount() as count:

        def launch(self: Any) -> None:
            count.total += 1

        patch.setattr(launches.Launch, "run", launch)
        with attending(Attention()):
            model(input_ids=ids, position_ids=torch.arange(9, device=DEVICE)[None], use_cache=False)
    return count.total


@pytest.mark.parametrize(
    ("name", "before", "after"), [("llama", 37, 8), ("qwen3", 53, 10), ("gemma2", 61, 11), ("phi3", 36, 9)]
)
def test_a_layer_launches_far_fewer_kernels(
    name: str, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside attention: the difference between models of two layers and of one."""
    models = [make(name, torch.float16, num_hidden_layers=num_layers) for num_layers in (1, 2)]
    for model in models:
        model.set_attn_implementation(NAME)
    one, two = (launches_of(model, monkeypatch) for model in models)
    found = [two - one]
    for model in models:
        fuse(model)
    one, two = (launches_of(model, monkeypatch) for model in models)
    assert [*found, two - one] == [before, after]


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms_equal_float64(dtype: torch.dtype) -> None:
    """Of rows side by side, of heads in either order, with a residual, with a weight that counts from 1."""
    rng = random.Random(0)
    for case in range(NUM_CASES):
        torch.manual_seed(case)
        width, num_tokens, heads = rng.choice([1, 24, 64, 129, 1500]), rng.randint(1, 5), rng.randint(1, 3)
        wide = numbers(1, num_tokens, heads * width + 3, dtype=dtype)[..., : heads * width]
        values = wide.view(1, num_tokens, heads, width)
        values = values.transpose(1, 2) if rng.random() < 0.5 else values
        residual = numbers(*values.shape, dtype=dtype) if rng.random() < 0.5 else None
        scaling, weight = launches.Scaling(rng.choice([0.0, 1.0]), True), numbers(width, dtype=dtype)
        output, summed = launches.add_and_norm(values, residual, weight, 1e-5, scaling)
        expected = values if residual is None else values + residual
        assert torch.equal(summed, expected)
        exact = expected.double()
        exact = exact * (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        assert_close(output, (exact * (weight.double() + scaling.offset)).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotations_equal_transformers(dtype: torch.dtype) -> None:
    """Of all or some numbers of a head; queries and keys are views of one tensor, and are left as they are."""
    rng = random.Random(0)
    for case in range(NUM_CASES):
        torch.manual_seed(case)
        half, rest = rng.choice([1, 5, 8, 40]), rng.choice([0, 0, 3])
        num_tokens, heads, keys, size = rng.randint(1, 5), rng.randint(1, 9), rng.randint(1, 3), 2 * half + rest
        both = numbers(num_tokens, heads + keys + 1, size, dtype=dtype)
        query, key = both[:, :heads], both[:, heads : heads + keys]
        cos, sin = numbers(2, num_tokens, 2 * half, dtype=dtype)
        before = both.clone()
        found = launches.rotate(query, key, cos, sin)
        assert torch.equal(both, before)
        exact = (tensor.double()[None] for tensor in (query, key, cos, sin))
        for tensor, expected in zip(found, apply_rotary_pos_emb(*exact, unsqueeze_dim=2), strict=True):
            assert_close(tensor, expected[0].to(dtype))


def stored_by_two(pool: Pool, rotation: DelayedRotation, value: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rotate, then store: what ``rotate_and_store`` does in one."""
    query, key = launches.rotate(rotation.query, rotation.key, rotation.cosines, rotation.sines)
    store_launch(pool, key, value, places).run()
    return query


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotating_and_storing_at_once_equals_one_after_the_other(dtype: torch.dtype) -> None:
    """To the bit: of views, to any place of a page, to pages of 8-bit floats, too."""
    rng = random.Random(1)
    for case in range(NUM_CASES):
        torch.manual_seed(case)
        half, rest, page = rng.choice([1, 5, 8, 40]), rng.choice([0, 0, 3]), rng.choice([16, 48])
        num_tokens, group, keys, value_size = (
            rng.randint(1, 5),
            rng.randint(1, 5),
            rng.randint(1, 3),
            rng.choice([7, 16]),
        )
        size, stored = 2 * half + rest, rng.choice([dtype, FP8])
        both = numbers(num_tokens, keys * group + keys, size, dtype=dtype) * rng.choice([1, 300])
        values = numbers(num_tokens, keys + 1, value_size, dtype=dtype)[:, :keys]
        cos, sin = numbers(2, num_tokens, 2 * half, dtype=dtype)
        rotation = DelayedRotation(both[:, : keys * group], both[:, keys * group :], cos, sin)
        places = torch.tensor(rng.sample(range(3 * page), num_tokens), dtype=torch.int32, device=DEVICE)
        pools = [
            Pool(*(torch.zeros(4, keys, page, width, device=DEVICE).to(stored) for width in (size, value_size)))
            for _ in range(2)
        ]
        before = both.clone()
        ways = (launches.rotate_and_store, stored_by_two)
        found, expected = (way(pool, rotation, values, places) for way, pool in zip(ways, pools, strict=True))
        assert torch.equal(found, expected) and torch.equal(both, before)
        for one, other in ((pools[0].keys, pools[1].keys), (pools[0].values, pools[1].values)):
            assert torch.equal(one.float().nan_to_num(7), other.float().nan_to_num(7)) and bool(one.float().any())


class CuriousAttention(LlamaAttention):
    """Scales its queries after their rotation, as llama 4 does in some layers."""

    is_curious = False

    def forward(self, hidden_states: torch.Tensor, position_embeddings: Any, attention_mask: Any, **_: Any) -> Any:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            product(hidden_states).view(heads).transpose(1, 2) for product in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        query = query * 2 if self.is_curious else query
        attend = ALL_ATTENTION_FUNCTIONS[NAME]
        return self.o_proj(attend(self, query, key, value, attention_mask)[0].flatten(-2)), None


def test_a_layer_that_looks_at_its_rotated_queries_rotates_them_itself() -> None:
    """Though other layers of its class do not. A layer that is called in another way than any known one, too."""
    model = make("llama", num_hidden_layers=3)
    model.set_attn_implementation(NAME)
    for layer in model.model.layers:
        layer.self_attn.__class__ = CuriousAttention
    model.model.layers[1].self_attn.is_curious = True
    model.model.layers[2].self_attn.head_dim = 7
    found = fuse(model)
    assert "1 rotations with the storing of keys" in found and ", 2 rotations," in found


@pytest.mark.parametrize("activation", launches.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_equal_torch(dtype: torch.dtype, activation: str) -> None:
    """Also far from zero, where exponentials overflow."""
    rng = random.Random(0)
    for case in range(NUM_CASES):
        torch.manual_seed(case)
        width = rng.choice([1, 96, 1024, 1030])
        both = numbers(rng.randint(1, 3), 2 * width, dtype=dtype)
        both[:, :width] *= rng.choice([1, 100])
        gate, up = both.double().chunk(2, dim=-1)
        functions = {"silu": nn.functional.silu, "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh")}
        assert_close(launches.gate(both, activation), (functions[activation](gate) * up).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_logit_is_that_of_torch(dtype: torch.dtype) -> None:
    """The first of equal ones, in one block and over several; NaN if there is one; rows of minus infinity."""
    for vocab_size in (1, 96, 4096, 4097, 9000):
        logits = numbers(6, vocab_size + 5, dtype=dtype)[:, :vocab_size]
        for row, places in enumerate([(0, vocab_size - 1), (vocab_size // 2, vocab_size - 1)]):
            logits[row, list(places)] = 50
        logits[2, vocab_size // 3] = torch.nan
        logits[3] = -torch.inf
        logits[4] = -torch.inf
        logits[4, vocab_size - 1] = -3
        top, best = launches.largest(logits)
        expected_top, expected_best = in_two_rounds(logits.contiguous())
        assert top.dtype == expected_top.dtype and best.dtype == expected_best.dtype
        assert torch.equal(top.nan_to_num(99), expected_top.nan_to_num(99)) and bool(top[2].isnan())
        has_number = ~top.isnan()
        assert torch.equal(best[has_number], expected_best[has_number])
        assert bool(((best >= 0) & (best < vocab_size)).all())
    assert largest_agrees(logits)


def test_merged_weights_take_no_memory_twice() -> None:
    """The layers' own weights and biases are parts of the merged ones, in order; nothing else is allocated."""
    model = make("qwen2")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse(model)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    for names, parent in (("q_proj k_proj v_proj", attention), ("gate_proj up_proj", mlp)):
        weights = [getattr(parent, name).weight for name in names.split()]
        assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
        assert weights[0].untyped_storage().nbytes() == sum(weight.nbytes for weight in weights)
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)


def test_siblings_never_mix_up_two_inputs() -> None:
    """In any order; an input that was not used up is not kept for the next; used ones are let go."""
    linears = [nn.Linear(4, size, bias=False, dtype=torch.float64).requires_grad_(False) for size in (3, 2, 5)]
    own = [type(linear).forward for linear in linears]
    siblings = Siblings(MergedLinear(linears))
    forwards = [siblings.forward_of(idx) for idx in range(3)]
    first, second = torch.randn(2, 1, 7, 4, dtype=torch.float64)
    for idx, values in [(2, first), (0, first), (0, second), (1, first), (1, second), (2, second), (0, second)]:
        assert torch.allclose(forwards[idx](values), own[idx](linears[idx], values))
    for idx in (1, 2, 0):
        forwards[idx](first)
    assert siblings._values is None and not siblings._parts


class OddNorm(nn.Module):
    """Looks like an RMSNorm, but subtracts the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(64, device=DEVICE)), 1e-6

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = values - values.mean(-1, keepdim=True)
        return self.weight * values * (values.square().mean(-1, keepdim=True) + self.eps).rsqrt()


class OtherLinear(nn.Linear):
    """As a quantized layer would be: not a plain product as far as anyone knows."""


class UnbiasedNorm(OddNorm):
    """Divides by one number less: with 1,000 of them, float16 hardly shows it."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        wide = values.float()
        variance = wide.square().sum(-1, keepdim=True) / (wide.shape[-1] - 1)
        return self.weight * (wide * (variance + self.eps).rsqrt()).to(values.dtype)


def test_a_norm_is_tried_in_float32_too() -> None:
    norm = UnbiasedNorm()
    norm.weight = nn.Parameter(torch.ones(1000, device=DEVICE, dtype=torch.float16), requires_grad=False)
    assert scaling_of(norm) is None


def test_what_is_not_known_to_be_the_same_is_left_alone() -> None:
    """A norm that computes something else, a module with a hook, a layer of another class, the exact gelu."""
    model = make("llama", hidden_act="gelu")
    layer = model.model.layers[0]
    layer.input_layernorm = OddNorm()
    layer.post_attention_layernorm.register_forward_hook(lambda module, args, output: output * 2)
    layer.self_attn.k_proj.__class__ = OtherLinear
    expected = logits_of(model)
    assert fuse(model) == "3 norms, 1 attention projections, 2 rotations, 1 residual sums"
    assert_close(logits_of(model), expected)


def test_a_layer_that_adds_in_another_way_is_left_alone() -> None:
    """As granite does, with a factor."""
    model = make("granite", residual_multiplier=0.5)
    expected = logits_of(model)
    assert "residual" not in fuse(model)
    assert_close(logits_of(model), expected)


def test_a_model_that_is_not_fused_keeps_the_rotation_of_its_modeling_file() -> None:
    fused, other = make("llama"), make("llama")
    expected = logits_of(other)
    fuse(fused)
    assert not any("forward" in vars(module) for module in other.modules())
    assert torch.equal(logits_of(other), expected)
