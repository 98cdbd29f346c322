"""Whether a model fits: the arithmetic against what the engine really holds, the preview, and the README's table."""

import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from job.config import EngineConfig
from job.engine.fit.gpus import GPUS, Gpu
from job.engine.fit.memory import Room, Work, fit, fits_from, least_secs
from job.engine.fit.shape import ModelShape, shape_of
from job.engine.model.kv_size import kv_bytes_per_token
from job.engine.model.precision import Precision
from tests.conftest import Result
from tests.engine_process import kv_bytes_of
from tests.ranks import Ranks
from tests.serving import make_engine, serve
from tests.test_run import write_jsonl
from tests.tiny import ARCHITECTURES

BFLOAT16 = Precision(dtype="bfloat16")
ROOT = Path(__file__).parents[1]
CUT = ("llama", "llama_uneven", "qwen2", "gemma2", "mistral", "gpt_neox")
EXPERTS = {
    "model_type": "qwen3_moe",
    "num_key_value_heads": 2,
    "head_dim": 32,
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
LATENT = {
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 64,
}

RunJob = Callable[..., Result]


def shape(config: Any) -> ModelShape:
    found = shape_of(config)
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"gpt_neo"}))  # which runs in static batches
def test_weights_and_cache_are_those_that_the_engine_holds(tiny_model: Callable[..., Path], name: str) -> None:
    config = AutoConfig.from_pretrained(tiny_model(name))
    served = serve(tiny_model(name))
    held = sum(parameter.numel() for parameter in served.model.module.parameters())
    assert shape(config).params_of_process(1) == shape(config).num_params == held
    assert kv_bytes_per_token(config, "float32", 1) == kv_bytes_of(make_engine(served))


@pytest.mark.skipif("JOB_TEST_MODEL" not in os.environ, reason="JOB_TEST_MODEL names no model; scripts/test sets it")
def test_weights_and_cache_of_a_real_model_are_those_that_the_engine_holds() -> None:
    model_dir = Path(os.environ["JOB_TEST_MODEL"])
    config, served = AutoConfig.from_pretrained(model_dir), serve(model_dir)
    held = sum(parameter.numel() for parameter in served.model.module.parameters())
    assert shape(config).params_of_process(1) == held == 134_515_008
    assert kv_bytes_per_token(config, "float32", 1) == kv_bytes_of(make_engine(served))


@pytest.fixture(scope="module")
def on_two_ranks(tiny_model: Callable[..., Path], two_ranks: Ranks) -> dict[str, Any]:
    """What the leader of two processes holds of each model; it has the larger share of uneven heads."""
    models = {name: tiny_model(name) for name in CUT}
    models["tied"] = tiny_model("llama", tie_word_embeddings=True)
    models |= {"experts": tiny_model("llama", **EXPERTS), "latent": tiny_model("llama", **LATENT)}
    models["shared"] = tiny_model(
        "llama", **EXPERTS | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 128}
    )
    jobs = {
        name: {"model": str(model), "prompts": [[5, 6, 7]], "params": {"max_new_tokens": 2}}
        for name, model in models.items()
    }
    return {name: (models[name], output) for name, output in two_ranks.run(jobs).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CUT, "tied", "experts", "latent", "shared"])
def test_the_share_of_a_process_is_the_one_that_autotp_cuts(on_two_ranks: dict[str, Any], name: str) -> None:
    """To one percent: biases and small layers are not always cut."""
    model_dir, output = on_two_ranks[name]
    config = AutoConfig.from_pretrained(model_dir)
    assert shape(config).params_of_process(2) == pytest.approx(output["num_params"], rel=0.01)
    assert kv_bytes_per_token(config, "float32", 2) == output["kv_bytes_per_token"]


def room(gpu: str) -> Room:
    return Room(name=gpu, num_bytes=GPUS[gpu].memory_gb * 10**9, is_gpu=True, gpu=GPUS[gpu])


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts/fit_table.py"))


@pytest.mark.parametrize(
    ("model", "gpu", "sizes"),
    [
        ("Llama-3.1-8B", "t4", [2, 4, 8]),
        ("Llama-3.1-8B", "h100", [1, 2, 4, 8]),
        ("Llama-3.1-70B", "h100", [2, 4, 8]),
        ("Llama-3.1-70B", "a100-40", [4, 8]),
        ("Llama-3.1-70B", "l40s", [4, 8]),
        ("Llama-3.1-70B", "t4", []),
        ("Qwen3-30B-A3B", "l40s", [2, 4]),
        ("Qwen3-30B-A3B", "h100", [1, 2, 4]),  # and it has four key-value heads
    ],
)
def test_the_sizes_that_fit(models: dict[str, Any], model: str, gpu: str, sizes: list[int]) -> None:
    config = AutoConfig.for_model(**models["MODELS"][model])
    found = fits_from(config, shape(config), BFLOAT16, room(gpu), EngineConfig(), row_tokens=4096)
    assert [one.tensor_parallel_size for one in found] == sizes


def test_a_cache_of_the_users_choice_counts_as_it_is(models: dict[str, Any]) -> None:
    config = AutoConfig.for_model(**models["MODELS"]["Llama-3.1-8B"])
    for num_bytes, fits in ((10 * 2**30, True), (59 * 2**30, False), (100 * 2**30, False), (2**20, False)):
        found = fit(config, shape(config), BFLOAT16, room("h100"), EngineConfig(kv_cache_memory=num_bytes), 1)
        assert found is not None and found.cache_bytes == num_bytes and found.fits(row_tokens=1000) == fits


def test_the_least_time_is_that_of_reading_the_weights_or_of_multiplying(models: dict[str, Any]) -> None:
    """One row reads all weights for every token; a prompt costs two operations per parameter and token."""
    config = AutoConfig.for_model(**models["MODELS"]["Llama-3.1-8B"])
    of_model = shape(config)
    found = fit(config, of_model, BFLOAT16, room("h100"), EngineConfig(), 1)
    assert found is not None
    gpu = Gpu(memory_gb=80, bandwidth_gb_per_sec=1000, teraflops=100)
    alone = least_secs(of_model, BFLOAT16, found, gpu, Work(num_rows=1, num_prompt_tokens=0, num_new_tokens=100))
    assert alone == pytest.approx(100 * 2 * 8.03e9 / 1e12, rel=0.01)
    prompts = least_secs(of_model, BFLOAT16, found, gpu, Work(num_rows=1, num_prompt_tokens=10**6, num_new_tokens=0))
    assert prompts == pytest.approx(2 * 7.5e9 * 10**6 / 1e14, rel=0.01)
    many = least_secs(of_model, BFLOAT16, found, gpu, Work(num_rows=512, num_prompt_tokens=0, num_new_tokens=51200))
    assert alone < many < 10 * alone, "512 rows share the reading of the weights"


def test_a_token_is_multiplied_with_the_experts_that_it_uses(models: dict[str, Any]) -> None:
    of_model = shape(AutoConfig.for_model(**models["MODELS"]["Qwen3-30B-A3B"]))
    assert of_model.num_params == pytest.approx(30.5e9, rel=0.01)
    assert of_model.multiplied_params(1) == pytest.approx(3.0e9, rel=0.05)


def test_the_table_in_the_readme_is_the_one_that_the_code_prints(models: dict[str, Any]) -> None:
    printed = "\n".join(models["table"]())
    assert printed in (ROOT / "README.md").read_text(), f"Put this into the README:\n{printed}"


def test_preview_says_whether_the_model_fits(run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"question {i}?"} for i in range(20)])
    args = ["preview", "--model", tiny_model(), "--dataset", data, "--dtype", "float32", "--max-new-tokens", 100]
    values = json.loads(run_job(*args, "--gpu", "h100", "--json").stdout)["fit"]
    assert (values["device"], values["is_gpu"], values["memory_bytes"]) == ("h100", True, 80 * 10**9)
    assert values["weight_bytes"] == 4 * values["num_params"]
    assert values["asked"]["fits"] and values["asked"] == values["smallest"] and values["asked"]["rows_at_once"] == 512
    assert 0 < values["least_secs"] < 1
    shown = run_job(*args, "--gpu", "h100").stdout
    assert "in float32 (on h100)" in shown and "on this machine" not in shown
    assert "  memory    0.00 billion parameters, 1 MB; h100 has 80.0 GB\n" in shown
    assert "are left for the KV cache: " in shown and " tokens, 512 rows of median length at once\n" in shown
    values = json.loads(run_job(*args, "--json").stdout)["fit"]
    assert (values["device"], values["is_gpu"], values["least_secs"]) == ("this machine", False, None)
    assert values["asked"]["fits"]
    few = run_job(*args, "--gpu", "t4", "--kv-cache-memory", "1MiB").stdout
    token_bytes = kv_bytes_per_token(AutoConfig.from_pretrained(tiny_model()), "float32", 1)
    assert token_bytes is not None
    num_rows, all_rows = 2**20 // (112 * token_bytes), 512 * 112 * token_bytes / 1e6
    assert f"tokens, {num_rows} rows of median length at once\n" in few
    assert f"all 512 rows of a batch would take {all_rows:.0f} MB of KV cache\n" in few
    small = run_job(*args, "--gpu", "t4", "--kv-cache-memory", "16GiB").stdout
    assert "this does not fit: " in small and "it does not fit at any --tensor-parallel-size" in small
    assert json.loads(run_job(*args, "--engine", "fake", "--json").stdout)["fit"] is None
    assert run_job(*args, "--gpu", "h1000").exit_code == 2


def test_preview_without_a_model_that_can_be_built_says_so(
    run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("job.run.fit.shape_of", lambda *_, **__: None)
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a"}])
    result = run_job("preview", "--model", tiny_model(), "--dataset", data)
    assert result.exit_code == 0 and "  memory    unknown\n" in result.stdout
