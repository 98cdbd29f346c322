"""Models of real shape with random weights, made on the device in seconds, and prompts of random tokens for them."""

from typing import Any

import numpy as np
import torch
from _model_shapes import SHAPES

from .device import DEVICE, HALF


def make_model(shape: str) -> Any:
    """Return a random model. A CPU would need minutes for 16 GB, so it is made where it is used."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    values = SHAPES[shape].config()
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=HALF)
    model.generation_config.eos_token_id = None  # every row generates as many tokens as the others
    return model.eval().requires_grad_(False)


def make_prompts(num_rows: int, longest: int, vocab_size: int) -> list[list[int]]:
    """Return prompts of half to all of the longest length, which share no beginning."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(max(1, longest // 2), longest + 1, num_rows)
    return [generator.integers(2, vocab_size, int(length)).tolist() for length in lengths]
