"""Adapters merged at load: equal to peft unmerged, in one process and cut over two, and what cannot be merged."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from job.engine.model.adapters import inspect_adapters
from job.errors import UsageError
from tests import serving
from tests.conftest import Result
from tests.ranks import Ranks
from tests.test_run import read_output, write_jsonl

peft = pytest.importorskip("peft")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "query and value": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "all linear": ("llama", {"target_modules": "all-linear"}),
    "a regular expression": ("llama", {"target_modules": r".*\.mlp\.(up|down)_proj"}),
    "rslora": ("llama", {"target_modules": ALL, "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
    "dora": ("llama", {"target_modules": ALL, "use_dora": True}),
    "pissa": ("llama", {"target_modules": ALL, "init_lora_weights": "pissa"}),
    "some layers": ("llama", {"target_modules": ALL, "layers_to_transform": [1]}),
    "saved head": ("llama", {"target_modules": ALL, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "saved norm": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "an untied head": ("llama", {"target_modules": ["lm_head", "embed_tokens", "q_proj"]}),
    "lora bias": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
    "biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "trained tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]}),
}
IDS = torch.tensor([[5, 6, 7, 8, 100, 3, 9]])

RunJob = Callable[..., Result]


@pytest.fixture
def adapted(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Path, Any]]:
    """Return a function that makes an adapter: the directories of the model and of the adapter, and peft's model."""

    def make(name: str, directory: str = "adapter", **settings: Any) -> tuple[Path, Path, Any]:
        base = tiny_model(name)
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter)) if "norm" not in parameter_name else None
        model.save_pretrained(tmp_path / directory)
        return base, tmp_path / directory, model.eval()

    return make


def load(base: Path, *adapters: Path) -> Any:
    """Return a model that the job has loaded in this process in float32."""
    return serving.load(base, adapter=tuple(map(str, adapters)))[0].module


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def assert_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that logits differ by rounding alone: a merge adds in another order."""
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_is_what_peft_computes(adapted: Callable[..., Any], kind: str) -> None:
    name, settings = KINDS[kind]
    base, adapter, expected = adapted(name, **settings)
    whole = logits_of(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    found = logits_of(load(base, adapter))
    assert_alike(found, logits_of(expected))
    assert (found - whole).abs().max() > 1e-3


def test_several_are_merged_one_after_the_other(adapted: Callable[..., Any]) -> None:
    base, first, _ = adapted("llama", "first", target_modules=["q_proj"])
    _, second, _ = adapted("llama", "second", target_modules=["q_proj", "up_proj"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for adapter in (first, second):
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    assert torch.equal(logits_of(load(base, first, second)), logits_of(model))


def test_a_larger_vocabulary_is_made_room_for(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    size = base.config.vocab_size
    torch.manual_seed(0)
    base.resize_token_embeddings(size + 3, mean_resizing=False)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    found = load(tiny_model("llama"), tmp_path / "adapter")
    assert found.get_input_embeddings().weight.shape[0] == size + 3
    assert_alike(logits_of(found), logits_of(model.eval()))


def test_two_processes_give_what_one_gives(adapted: Callable[..., Any], two_ranks: Ranks) -> None:
    base, adapter, expected = adapted("llama", target_modules=ALL, use_dora=True, modules_to_save=["lm_head"])
    job = {
        "model": str(base),
        "model_config": {"adapter": [str(adapter)]},
        "prompts": [IDS[0].tolist(), [5, 6, 7]],
        "params": {"max_new_tokens": 8, "ignore_eos": True},
    }
    rows = two_ranks.run({"adapted": job})["adapted"]["generations"]
    for prompt, row in zip(job["prompts"], rows, strict=True):
        ids = torch.tensor([prompt])
        for _ in range(8):
            with torch.inference_mode():
                ids = torch.cat([ids, expected(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        assert row[1] == ids[0, len(prompt) :].tolist()


def test_a_run_knows_its_adapter(run_job: RunJob, adapted: Callable[..., Any], tmp_path: Path) -> None:
    """By its contents; and it reads the tokenizer that comes with it."""
    base, adapter, _ = adapted("llama", target_modules=["q_proj"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}own {{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(adapter)
    data, out = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "word"}] * 3), tmp_path / "out"
    args = ["run", "--model", base, "--dataset", data, "--output", out, "--prompt-column", "prompt"]
    args += ["--max-new-tokens", 3, "--dtype", "float32"]
    result = run_job(*args, "--adapter", adapter)
    assert result.exit_code == 0, result.stderr
    assert f"adapter {adapter}, rank 4, is merged into the model; its tokenizer and chat template" in result.stderr
    assert read_output(out)["prompt"].to_pylist() == ["own word"] * 3
    without = run_job(*args)
    assert without.exit_code == 2 and "--adapter was" in without.stderr
    moved = tmp_path / "moved"
    shutil.copytree(adapter, moved)
    assert run_job(*args, "--adapter", moved).exit_code == 0, "a copy is the same adapter"
    settings = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 99}))
    changed = run_job(*args, "--adapter", moved)
    assert changed.exit_code == 2 and "--adapter was" in changed.stderr


def test_what_cannot_be_merged_is_refused(adapted: Callable[..., Any], tmp_path: Path) -> None:
    base, adapter, _ = adapted("llama", target_modules=["q_proj", "lm_head"])
    config = AutoConfig.from_pretrained(base)

    def refusal(directory: Any, hf_config: Any = config) -> str:
        with pytest.raises(UsageError) as caught:
            inspect_adapters([str(directory)], hf_config)
        return str(caught.value)

    assert "there is no such directory" in refusal(tmp_path / "nothing")
    assert f"has no adapter_config.json, so it is not an adapter. Perhaps you mean {adapter}." in refusal(tmp_path)
    tied = AutoConfig.from_pretrained(base)
    tied.tie_word_embeddings = True
    assert "changes lm_head, but the model's embedding and its output layer are the same" in refusal(adapter, tied)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "IA3"}))
    assert "is of the kind IA3; only LORA" in refusal(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"init_lora_weights": "loftq"}))
    assert "was begun with loftq, which also changes the model" in refusal(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "has pickled weights (adapter_model.bin)" in refusal(adapter)
    (adapter / "adapter_model.safetensors").write_text("x")
    assert "is not a safetensors file" in refusal(adapter)


def test_an_adapter_of_another_model_is_refused(adapted: Callable[..., Any], tiny_model: Callable[..., Path]) -> None:
    _, adapter, _ = adapted("llama", target_modules=["q_proj"])
    with pytest.raises(UsageError, match=r"does not fit the model: .* Was it trained on another one\?"):
        load(tiny_model("llama", hidden_size=64, head_dim=16), adapter)
