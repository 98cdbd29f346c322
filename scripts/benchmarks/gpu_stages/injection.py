"""Which architectures DeepSpeed's kernel injection still serves on this card: its tokens against the model's own."""

import importlib
import tempfile
import time
from pathlib import Path
from typing import Any

from . import processes
from .figures import save

COMMON = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "intermediate_size": 256},
    "gpt2": {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {**COMMON, "ffn_dim": 256, "word_embed_proj_dim": 128},
    "gpt_neox": {**COMMON, "intermediate_size": 512},
    "gptj": {"n_embd": 128, "n_layer": 2, "n_head": 4, "rotary_dim": 16},
    "bloom": {"hidden_size": 128, "n_layer": 2, "n_head": 4},
    "gpt_neo": {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]},
}


def main(*, architectures: list[str] | None = None, limit_secs: int = 150) -> None:
    """Try each architecture in a process of its own: a CUDA error ends a process for good.

    Args:
        limit_secs: for one of them. The first compiles DeepSpeed's kernels, which takes nvcc a minute or two.
    """
    for name in architectures or MODELS:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "log"
            child = processes.prepare(
                "gpu_stages.injection", "inject", {"name": name}, log=log, env={}, leads_group=False
            )
            problem = None
            if not child.finish(limit_secs):
                problem = f"had not ended after {limit_secs} s"
                child.process.kill()
            elif child.process.exitcode != 0:
                problem = f"ended with exit code {child.process.exitcode}"
            output = log.read_text(encoding="utf-8", errors="replace")
        print(output, flush=True)
        if problem is not None:
            lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
            save(name, secs=time.perf_counter() - begin, failed=f"{problem}: {lines[-1][:200]}")


def inject(*, name: str) -> None:
    """Compare the greedy tokens of a model before and after injection."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from .device import DEVICE, HALF

    torch.manual_seed(0)
    values = {"vocab_size": 256, "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0, **MODELS[name]}
    config = AutoConfig.for_model(name, **values)
    config.initializer_range = config.init_std = 0.2  # wide: few near ties among the largest logits
    model = AutoModelForCausalLM.from_config(config, dtype=HALF).to(DEVICE).eval()
    ids = torch.randint(5, 250, (2, 20), device=DEVICE)
    options = {"max_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    deepspeed = importlib.import_module("deepspeed")
    with torch.inference_mode():
        expected = model.generate(ids, **options)
        engine = deepspeed.init_inference(model, dtype=HALF, replace_with_kernel_inject=True, max_out_tokens=256)
        found = engine.module.generate(ids, **options)
    replaced = sum("DeepSpeed" in type(module).__name__ for module in engine.module.modules())
    same = float((found[:, 20:] == expected[:, 20:]).float().mean())
    save(name, {"equal_tokens": 1.0}, replaced_modules=replaced, equal_tokens=same)
