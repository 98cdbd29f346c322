"""Models that AutoTP alone cuts wrongly, or not enough, on two processes: one for each way in which they are cut.

JOB_TEST_ARCHITECTURES=1 runs every architecture that may be cut (``scripts/bench architectures``), for half an hour.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from job.config import ModelConfig
from job.engine.fit.shape import shape_of
from job.engine.model import experts
from job.engine.model.info import inspect_model
from job.engine.model.kv_size import kv_bytes_per_token
from job.engine.model.tensor_parallel import VERIFIED, WITHOUT_ATTENTION, check_tensor_parallel
from job.engine.model.text_part import KEYS, text_part_of
from job.errors import UsageError
from job.remote.model_files import ModelFiles
from tests.ranks import Ranks
from tests.serving import expected_tokens, load, make_prompts
from tests.tiny import LARGER

ROOT = Path(__file__).parents[1]
MAX_NEW_TOKENS = 12
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
UNEVEN = {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3}

CASES: dict[str, dict[str, Any]] = {
    "experts": {"model_type": "mixtral", "sliding_window": None, **EXPERTS},
    "alternating experts with a bias, and sinks": {
        "model_type": "gpt_oss",
        **EXPERTS,
        "head_dim": 16,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    },
    "fused projections": {"model_type": "phi3", **UNEVEN},
    "alibi": {"model_type": "bloom", "hidden_size": 144, "n_head": 9},
    "alibi without padding": {"model_type": "bloom", "hidden_size": 144, "n_head": 9},
    "MLPs alone": {"model_type": "olmo2", "num_key_value_heads": 2},
    "experts alone": {"model_type": "olmoe", **EXPERTS},
    "the language model of a larger one": LARGER,
}
"""What to make of ``tiny_model``. Heads are uneven where something depends on which of them a process has."""


@pytest.fixture(scope="module")
def on_two_ranks(tiny_model: Callable[..., Path], two_ranks: Ranks) -> dict[str, Any]:
    """What the leader of two processes got of each model."""
    asked = {"engine": "chosen", "prompts": make_prompts(), "params": {"max_new_tokens": MAX_NEW_TOKENS}}
    return two_ranks.run(
        {
            name: {
                "model": str(tiny_model(**values)),
                "config": {"max_batch_rows": 1 if name == "alibi without padding" else 4},
                **asked,
            }
            for name, values in CASES.items()
        }
    )


@pytest.mark.parametrize("case", CASES)
def test_greedy_equals_transformers_on_two_ranks(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, Any], case: str
) -> None:
    """In the paged engine, except ALiBi; and the first process holds what ``job preview`` says."""
    model_dir, output = tiny_model(**CASES[case]), on_two_ranks[case]
    expected = expected_tokens(model_dir, make_prompts(), MAX_NEW_TOKENS)
    assert [ids for _, ids, _, _ in output["generations"]] == expected
    assert bool(output["notes"]) == ("alibi" in case), output["notes"]
    config = text_part_of("", AutoConfig.from_pretrained(model_dir))
    shape = shape_of(config)
    assert shape is not None
    grains = 0.06 if "alibi" in case else 0.01  # its layers are small, and cut in grains of 64
    assert shape.params_of_process(2) == pytest.approx(output["num_params"], rel=grains)
    if case in ("experts", "alternating experts with a bias, and sinks", "experts alone"):
        assert output["num_params"] <= 0.6 * shape.num_params


def test_of_a_larger_model_only_the_language_model_is_loaded(tiny_model: Callable[..., Path]) -> None:
    """By whatever names its weights have in the files, and with what the whole configuration says of it."""
    model_dir = tiny_model(**LARGER)
    config = AutoConfig.from_pretrained(model_dir)
    text = text_part_of("x", config)
    assert (text.model_type, text.tie_word_embeddings, text.dtype) == ("gemma3_text", False, torch.float32)
    model, _ = load(model_dir)
    info = inspect_model(ModelConfig(model=str(model_dir)), ModelFiles(name=str(model_dir)), torch.device("cpu"), 2)
    assert info.notes == ("only the language model of gemma3 is loaded (gemma3_text): images are not read",)
    shape = shape_of(text)
    assert shape is not None
    assert sum(parameter.numel() for parameter in model.module.parameters()) == shape.num_params
    name = "model.layers.1.mlp.up_proj.weight"
    for renamed in (f"model.language_{name}", f"language_model.{name}", f"model.text_{name}"):
        key = renamed
        for pattern, target in KEYS.items():
            key = re.sub(pattern, target, key)
        assert key == name


def test_a_larger_model_that_was_not_compared_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--model x \(paligemma\) is a model of more than text, and its language"):
        text_part_of("x", AutoConfig.for_model("paligemma"))


class Ungated(nn.Module):
    """Experts without a gate, as Nemotron-H has them."""

    has_gate, has_bias, is_transposed, is_concatenated = False, False, False, True

    def __init__(self, config: Any) -> None:
        super().__init__()
        count, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.up_proj = nn.Parameter(torch.empty(count, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, inner))

    def forward(self, hidden: torch.Tensor, which: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        inner = torch.einsum("th,eih->tei", hidden, self.up_proj).relu().square()
        mixed = torch.zeros(len(hidden), len(self.up_proj)).scatter(1, which, weights)
        return torch.einsum("tei,ehi,te->th", inner, self.down_proj, mixed)


@pytest.mark.parametrize("kind", [MixtralExperts, GptOssExperts, Llama4TextExperts, Ungated])
@pytest.mark.parametrize("size", [2, 3])
def test_the_parts_of_experts_add_up_to_the_whole(kind: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are uneven; each part is a view until it is placed, and a multiple of 8."""
    name = {GptOssExperts: "gpt_oss", Llama4TextExperts: "llama4_text"}.get(kind, "mixtral")
    config = AutoConfig.for_model(name, hidden_size=32, intermediate_size=40, num_local_experts=4)
    config._experts_implementation = "eager"
    monkeypatch.setattr(experts.dist, "all_reduce", lambda tensor, group: None)

    def make() -> Any:
        torch.manual_seed(0)
        module = kind(config)
        for parameter in module.parameters():
            nn.init.normal_(parameter.data)
        return module.requires_grad_(False)

    hidden, which, weights = (
        torch.randn(5, 32),
        torch.tensor([[0, 1], [2, 3], [1, 2], [0, 3], [1, 3]]),
        torch.rand(5, 2),
    )
    args = (torch.randn(20, 32),) if kind is Llama4TextExperts else (hidden, which, weights)
    outputs, inner_sizes = [], []
    for rank in range(size):
        model = make()
        owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        seen: list[bool] = []

        def place(tensor: torch.Tensor, owned: Any = owned, seen: Any = seen) -> torch.Tensor:
            seen.append(tensor.untyped_storage().data_ptr() in owned or not tensor.any())
            return tensor.contiguous()

        holder = nn.Module()
        holder.experts, holder.config = model, config
        info = SimpleNamespace(tensor_parallel_rank=rank, tensor_parallel_size=size)
        changed = experts.shard_experts(holder, SimpleNamespace(info=info, tensor_group=None), place)
        assert changed == {name for name, _ in holder.named_parameters()} and all(seen)
        inner_sizes.append(model.down_proj.shape[1 if kind in (GptOssExperts, Llama4TextExperts) else 2])
        outputs.append(model(*args))
    assert sum(inner_sizes) == 40 and not any(inner % 8 for inner in inner_sizes)
    assert torch.allclose(sum(outputs), make()(*args), atol=1e-3)


def test_experts_whose_layout_is_unknown_are_refused() -> None:
    """They would stay whole on every process, or worse, be cut in the wrong places."""
    config = AutoConfig.for_model("mixtral", num_local_experts=4)
    unknown = nn.Module()
    unknown.weight = nn.Parameter(torch.zeros(4, 8, 16))
    with pytest.raises(UsageError, match=r"experts .* cannot be cut: their layout is unknown\. Use --tensor"):
        experts.layout_of(unknown, experts.num_experts(config))
    normed = MixtralExperts(config)
    normed.has_post_expert_norm = True
    with pytest.raises(UsageError, match="each has a norm after it"):
        experts.layout_of(normed, 4)
    assert experts.layout_of(nn.Conv1d(4, 4, 3), 4) is None


def test_experts_that_cannot_be_cut_in_grains_are_refused_before_weights_are_loaded() -> None:
    for inner, most in ((64, "8 or less"), (100, "1")):
        config = AutoConfig.for_model("qwen3_moe", num_key_value_heads=16, num_experts=4, moe_intermediate_size=inner)
        with pytest.raises(UsageError, match=rf"inner size of {inner}, .* multiple of 8\. Use {most}\."):
            check_tensor_parallel(config, 16)
    check_tensor_parallel(AutoConfig.for_model("qwen3_moe", num_key_value_heads=16), 16)


def test_attention_that_is_not_cut_needs_no_head_for_each_process_and_all_keys_and_values() -> None:
    config = AutoConfig.for_model("olmo2", num_attention_heads=32, num_key_value_heads=2)
    check_tensor_parallel(config, 4)
    assert kv_bytes_per_token(config, "bfloat16", 4) == kv_bytes_per_token(config, "bfloat16", 1)


def test_the_readme_names_what_may_be_cut() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in VERIFIED | WITHOUT_ATTENTION if not re.search(rf"[\n ]{name}[,. ]", text)] == []


@pytest.mark.slow
@pytest.mark.skipif(
    "JOB_TEST_ARCHITECTURES" not in os.environ, reason="JOB_TEST_ARCHITECTURES is not set: half an hour"
)
def test_every_architecture_that_may_be_cut_gives_the_tokens_of_the_whole_model() -> None:
    names = ",".join(sorted(VERIFIED | WITHOUT_ATTENTION | {"falcon_7b", "falcon_rw"}))
    command = [sys.executable, "scripts/benchmarks/architectures.py", "--only", names]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    found = json.loads(output.splitlines()[-1])["cut"]
    assert [name for name in names.split(",") if found.get(name, {}).get("equal") != 6] == []
