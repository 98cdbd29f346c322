"""The engine's greedy tokens in float32 against transformers' own, one prompt at a time, for tiny models."""

import gc
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.tiny import make_model

from . import engines
from .device import DEVICE, ON_CUDA
from .figures import save


def main(*, architectures: list[str], lengths: list[int], num_new: int, variants: dict[str, dict[str, Any]]) -> None:
    """Compare every architecture in every variant of the engine.

    Args:
        architectures: names of ``tests.tiny.ARCHITECTURES``.
        lengths: tokens of each prompt.
        variants: fields of ``EngineConfig``.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    prompts = [[5 + (row * 7 + at) % 200 for at in range(length)] for row, length in enumerate(lengths)]
    for name in architectures:
        with tempfile.TemporaryDirectory() as directory:
            make_model(Path(directory), name)
            model = load(directory, name)
            expected = [_greedy(model, prompt, num_new) for prompt in prompts]
            for variant, options in variants.items():
                engine, notes = engines.build(load(directory, name), options)
                engines.submit(engine, prompts, num_new)
                _, tokens = engines.finish(engine)
                equal = sum(list(tokens[row]) == ids for row, ids in enumerate(expected))
                save(f"{name}, {variant}", {"equal_rows": len(prompts)}, equal_rows=equal, notes=notes)
                assert equal == len(prompts), f"{name}, {variant}: rows differ"
                del engine
                gc.collect()
                if ON_CUDA:
                    torch.cuda.empty_cache()


def load(directory: str, name: str) -> Any:
    """Return a model that was saved, in float32 on the device; none of its tokens ends a row."""
    attention = "eager" if name == "gemma2" else None  # see ``loading._attention_of``
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation=attention)
    model.generation_config.eos_token_id = None
    return model.to(DEVICE).eval().requires_grad_(False)


def _greedy(model: Any, prompt: list[int], num_new: int) -> list[int]:
    ids = torch.tensor([prompt], device=DEVICE)
    options = {"max_new_tokens": num_new, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    with torch.inference_mode():
        return model.generate(ids, **options)[0, len(prompt) :].tolist()
