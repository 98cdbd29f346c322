"""Adapters merged at load: equal to peft unmerged, in one process and cut over two, and what cannot be merged."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from job.config import ModelConfig
from job.engine.model.adapters import merging
from job.engine.model.adapters.adapter import inspect_adapters
from job.engine.model.adapters.merging import MergedLayers, put_in
from job.engine.model.info import inspect_model
from job.engine.model.kinds import CAUSAL
from job.engine.model.quantized import Int8Linear
from job.engine.model.reading import read_weights
from job.errors import UsageError
from job.output.looking.found import find_run
from job.remote.model_files import ModelFiles
from job.run.token_bytes import token_bytes_of
from tests import quantized, serving
from tests.conftest import Result
from tests.quantized import make_quantized
from tests.ranks import Ranks
from tests.test_run import read_output, write_jsonl
from tests.tiny import LARGER

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
    "a larger model": ("larger", {"target_modules": ["q_proj", "v_proj", "out_proj"]}),
    "trained tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]}),
    "left out": ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "olora": ("llama", {"target_modules": ALL, "init_lora_weights": "olora"}),
    "orthogonal": ("llama", {"target_modules": ALL, "init_lora_weights": "orthogonal"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d dora": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "attention of experts": ("qwen3_moe", {"target_modules": ["q_proj", "v_proj"]}),
    "experts": ("qwen3_moe", {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}),
    "tied dora": ("llama_tied", {"target_modules": ALL, "use_dora": True}),
    "tied tokens": ("llama_tied", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]}),
    "tied, saved head": ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied, saved embedding": ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
}
"""Those of LoRA that a merge carries exactly."""

RELATIVES: Mapping[str, Callable[[], Any]] = {
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_r=4, total_step=10, target_modules=ALL),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=ALL),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["norm", "input_layernorm"]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=ALL),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=ALL),
    "miss": lambda: peft.MissConfig(r=4, target_modules=ALL),
    "oft": lambda: peft.OFTConfig(oft_block_size=32, target_modules=ALL),
    "trainable_tokens": lambda: peft.TrainableTokensConfig(token_indices=[3, 9], target_modules=["embed_tokens"]),
    "vera": lambda: peft.VeraConfig(r=8, target_modules=["q_proj", "o_proj"]),
}

MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"tie_word_embeddings": True}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "larger": ("llama", LARGER),
    "qwen3_moe": (
        "qwen3",
        {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
}
"""Names of models that are more than an architecture of ``tiny``."""

IDS = torch.tensor([[5, 6, 7, 8, 100, 3, 9]])

RunJob = Callable[..., Result]


@pytest.fixture
def adapted(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Path, Any]]:
    """Return a function that makes an adapter: the directories of the model and of the adapter, and peft's model."""

    def make(
        name: str, directory: str = "adapter", config: Any = None, dtype: torch.dtype = torch.float32, **settings: Any
    ) -> tuple[Path, Path, Any]:
        architecture, changes = MODELS.get(name, (name, {}))
        base = tiny_model(architecture, **changes)
        torch.manual_seed(0)
        config = config or peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
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


@pytest.mark.parametrize("kind", [*KINDS, *RELATIVES])
def test_a_merged_adapter_is_what_peft_computes(adapted: Callable[..., Any], kind: str) -> None:
    if kind in RELATIVES:
        base, adapter, expected = adapted("llama", config=RELATIVES[kind]())
    else:
        base, adapter, expected = adapted(KINDS[kind][0], **KINDS[kind][1])
    whole = logits_of(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    found = logits_of(load(base, adapter))
    assert_alike(found, logits_of(expected))
    assert (found - whole).abs().max() > 1e-3


def test_a_merged_adapter_is_quantized_with_the_model(adapted: Callable[..., Any]) -> None:
    base, adapter, _ = adapted("llama", target_modules=ALL)
    merged, alone = load(base, adapter), serving.load(base, quantize="int8")[0].module
    model = serving.load(base, adapter=(str(adapter),), quantize="int8")[0].module
    for name, part in model.named_modules():
        if isinstance(part, Int8Linear):
            expected = Int8Linear.of(merged.get_submodule(name), torch.device("cpu"), torch.float32)
            assert torch.equal(part.dequantized(), expected.dequantized()), name
            assert not torch.equal(part.dequantized(), alone.get_submodule(name).dequantized()), name


def test_several_are_merged_one_after_the_other(adapted: Callable[..., Any]) -> None:
    base, first, _ = adapted("llama", "first", target_modules=["q_proj"])
    _, second, _ = adapted("llama", "second", target_modules=["q_proj", "up_proj"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for adapter in (first, second):
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    assert torch.equal(logits_of(load(base, first, second)), logits_of(model))


def test_merged_layers_are_written_in_several_files(
    adapted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever merges has few of them in memory; a layer that two adapters change is written twice."""
    monkeypatch.setattr(merging, "FILE_BYTES", 150_000)
    monkeypatch.setenv("JOB_CACHE", str(tmp_path / "cache"))
    base, first, _ = adapted("llama", "first", target_modules=ALL, modules_to_save=["lm_head"])
    _, second, _ = adapted("llama", "second", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    config = ModelConfig(model=str(base), adapter=(str(first), str(second)))
    info = inspect_model(config, ModelFiles.local(config.model, config.adapter), torch.device("cpu"), 1)
    adapters = info.precision.adapters
    layers = MergedLayers(adapters=adapters, fingerprint="", itemsize=4, read=lambda: read_weights(config, info))
    directory = layers.directory()
    assert len(list(directory.glob("*.safetensors"))) > 5
    found = put_in(read_weights(config, info), directory, adapters)
    assert torch.equal(logits_of(found), logits_of(load(base, first, second)))


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


CUT = [kind for kind, (name, _) in KINDS.items() if name != "gpt2"]  # AutoTP does not cut GPT-2


def test_two_processes_give_what_peft_computes(adapted: Callable[..., Any], two_ranks: Ranks) -> None:
    """One of them merges, and both map what it has written; of all kinds, in float32, in one go."""
    jobs, expected, tokens = {}, {}, list(range(2, 26))
    for kind in CUT:
        name, settings = KINDS[kind]
        base, adapter, model = adapted(name, kind.replace(" ", "_"), **settings)
        asked = {"prompts": IDS.tolist(), "choices": [[token] for token in tokens]}
        jobs[kind] = {"model": str(base), "model_config": {"adapter": [str(adapter)]}, **asked}
        expected[kind] = logits_of(model)[0, -1].log_softmax(-1)[tokens]
    for kind, output in two_ranks.run(jobs).items():
        assert_alike(torch.tensor(output["scores"][0]), expected[kind])


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
    assert (
        f"adapter {adapter}, LoRA, rank 4, is merged into the model (q_proj); its tokenizer and chat template"
        in result.stderr
    )
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


def refusal(base: Path, *adapters: Any, tied: bool = False) -> str:
    """Return why adapters are refused before any weights are loaded."""
    config = AutoConfig.from_pretrained(base)
    config.tie_word_embeddings = config.tie_word_embeddings or tied
    with pytest.raises(UsageError) as caught:
        inspect_adapters([ModelFiles(name=str(adapter)) for adapter in adapters], config, CAUSAL)
    return str(caught.value)


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "prompts": (
        {"peft_type": "PREFIX_TUNING"},
        "is of the kind PREFIX_TUNING: it puts trained vectors before every prom",
    ),
    "mixture": ({"peft_type": "XLORA"}, "is of the kind XLORA: it is a mixture"),
    "another kind": ({"peft_type": "IA4"}, "is of the kind IA4; those that are merged are ADALORA, HRA, IA3"),
    "changed model": ({"init_lora_weights": "loftq"}, "was begun with loftq, which also changes the model"),
    "random draws": (
        {"init_lora_weights": "pissa_niter_4"},
        "was begun with pissa_niter_4, which also changes the model",
    ),
    "layers used twice": ({"layer_replication": [[0, 2], [0, 2]]}, "has layer_replication, which uses layers of the"),
    "activated": ({"alora_invocation_tokens": [5]}, "has alora_invocation_tokens, so it changes only what follows"),
    "targets elsewhere": (
        {"target_modules": ["c_attn"]},
        "does not fit the model: Target modules {'c_attn'} not found",
    ),
    "missing tensors": (
        {"target_modules": ["q_proj", "k_proj", "lm_head"]},
        "lacks 4 of the tensors that its configuration",
    ),
    "other tensors": (
        {"target_modules": ["q_proj"]},
        "does not fit the model: it has 2 tensors that belong to nothing there",
    ),
    "other rank": ({"r": 8}, "lora_A.weight has the shape [4, 128], and the model needs [8, 128]"),
    "other tokens": ({"trainable_token_indices": [260]}, "trains the token 260, but the model has only 260 tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused(adapted: Callable[..., Any], case: str) -> None:
    """By its configuration and its names and shapes; peft would only warn, or merge something else."""
    base, adapter, _ = adapted("llama", target_modules=["q_proj", "lm_head"])
    changes, message = REFUSED[case]
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | changes))
    assert message in refusal(base, adapter)


def test_files_that_cannot_be_used_are_named(adapted: Callable[..., Any], tmp_path: Path) -> None:
    base, adapter, _ = adapted("llama", target_modules=["q_proj", "lm_head"])
    assert f"has no adapter_config.json, so it is not an adapter. Perhaps you mean {adapter}." in refusal(
        base, tmp_path
    )
    assert f"It is a whole model: give it as --model {base}." in refusal(base, base)
    tied = refusal(base, adapter, tied=True)
    assert "changes lm_head, but the model's embedding and its output layer are the same" in tied
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    assert "has pickled weights (adapter_model.bin)" in refusal(base, adapter)
    weights.write_text("x")
    assert "is not a safetensors file" in refusal(base, adapter)


def test_biases_that_the_model_lacks_are_refused(adapted: Callable[..., Any]) -> None:
    base, adapter, _ = adapted("llama", target_modules=["q_proj"], lora_bias=True)
    assert "has lora_bias: it trains a bias of model.layers.0.self_attn.q_proj, which has none" in refusal(
        base, adapter
    )


def test_an_adapter_of_another_model_is_refused(adapted: Callable[..., Any], tiny_model: Callable[..., Path]) -> None:
    _, adapter, _ = adapted("llama", target_modules=["q_proj"])
    message = refusal(tiny_model("llama", hidden_size=64, head_dim=16), adapter)
    assert (
        "q_proj.lora_A.weight has the shape [4, 128], and the model needs [4, 64]. Was it trained on another" in message
    )


def test_what_is_saved_keeps_the_dtype_of_the_model(adapted: Callable[..., Any]) -> None:
    """Otherwise the layers of a 16-bit model would not take each other's results."""
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]}
    base, adapter, _ = adapted("llama", **settings)
    model = serving.load(base, dtype="bfloat16", adapter=(str(adapter),))[0].module
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def with_larger_vocabulary(base: Path, directory: Path) -> tuple[Any, Any]:
    """Write an adapter with a larger vocabulary. Returns its tokenizer and the model of peft."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<a>", "<b>", "<verdict>"], special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False, **settings))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return tokenizer, model.eval()


def test_a_run_has_the_tokens_of_its_adapter(run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """In prompts, in answers that a schema forces, and in the texts of tokens that are exported afterwards."""
    base = tiny_model()
    tokenizer, _ = with_larger_vocabulary(base, tmp_path / "a")
    data, out = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "<verdict>ab"}]), tmp_path / "out"
    args = ["run", "--model", base, "--adapter", tmp_path / "a", "--dataset", data, "--output", out, "--no-chat"]
    args += ["--max-new-tokens", 3, "--dtype", "float32", "--regex", "(yes|no)x*"]
    result = run_job(*args)
    assert result.exit_code == 0, result.stderr
    [row] = read_output(out).to_pylist()
    ids = tokenizer("<verdict>ab")["input_ids"]
    assert row["num_prompt_tokens"] == len(ids) == 3 and ids[0] == 260 and row["completion"][:1] in "yn"
    found = token_bytes_of(find_run(str(out)).manifest)
    assert found(260) == b"<verdict>"
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    plain = peft.LoraConfig(r=4, target_modules=["q_proj"])
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), plain).save_pretrained(tmp_path / "b")
    args[args.index(tmp_path / "a")] = tmp_path / "b"
    result = run_job(*args)
    assert (
        result.exit_code == 2
        and "has 1 tokens that the model lacks, such as '<verdict>': the model has 260" in result.stderr
    )


def test_quantized_models_are_made_dense_first(
    adapted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an adapter that was trained on one; its layers may be quantized again."""
    base = make_quantized(tmp_path / "quantized", quantized.FP8, quantized.to_fp8, "llama")
    info = inspect_model(ModelConfig(model=str(base)), ModelFiles(name=str(base)), torch.device("cpu"), 1)
    assert info.dense_weights is not None
    dense = info.dense_weights.directory()
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(dense, dtype="auto"), config)
    model.save_pretrained(tmp_path / "adapter")
    expected = logits_of(model.merge_and_unload(safe_merge=True).float())
    assert_alike(logits_of(load(base, tmp_path / "adapter")), expected)
    in_8_bits = serving.load(base, adapter=(str(tmp_path / "adapter"),), quantize="int8")[0].module
    assert torch.nn.functional.cosine_similarity(logits_of(in_8_bits), expected, dim=-1).min() > 0.99
