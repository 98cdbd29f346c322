"""Tiny models whose weights are quantized, in the layouts of published checkpoints."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.tiny import make_model

LINEAR = re.compile(r"layers\.\d+\..*_proj(_with_mqa)?\.weight")
"""What is quantized: linear layers, and no routers, embeddings or norms."""

Tensors = dict[str, torch.Tensor]

MODELS: Mapping[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 128,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 128,
    },
}


def make_quantized(
    directory: Path, settings: dict[str, Any], quantize: Callable[[str, torch.Tensor], Tensors], model: str = "llama"
) -> Path:
    """Write a tiny model of which linear layers are stored as what ``quantize`` makes of their weights."""
    make_model(directory, "llama", **{"model_type": model, **MODELS[model]}, dtype=torch.bfloat16)
    return quantize_again(directory, settings, quantize)


def quantize_again(directory: Path, settings: dict[str, Any], quantize: Callable[[str, torch.Tensor], Tensors]) -> Path:
    """Replace the weights of a tiny model by what ``quantize`` makes of them."""
    tensors: Tensors = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        made = quantize(name, tensor) if LINEAR.search(name) or ".experts." in name else {name: tensor}
        tensors |= {key: value.contiguous() for key, value in made.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return directory


def copy_with(directory: Path, target: Path, **settings: Any) -> Path:
    """Copy a model and change its quantization settings."""
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] |= settings
    (target / "config.json").write_text(json.dumps(config))
    return target


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FP8_WHOLE = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn", "router", "embed_tokens", "lm_head"]}


def to_fp8(name: str, weight: torch.Tensor) -> Tensors:
    """Quantize in blocks of 128 x 128."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // 128), -(-columns // 128))
    stored = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            place = (slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128))
            scales[row, column] = weight[place].abs().max().float() / 448
            stored[place] = (weight[place].float() / scales[row, column]).to(stored.dtype)
    return {name: stored, f"{name}_scale_inv": scales}


def to_fp8_whole(name: str, weight: torch.Tensor) -> Tensors:
    """Quantize with one scale, and with one for the activations, which nobody uses here."""
    scale = weight.abs().max().float() / 448
    stored = (weight.float() / scale).to(torch.float8_e4m3fn)
    activation = name.removesuffix("weight") + "activation_scale"
    return {name: stored, f"{name}_scale_inv": scale, activation: torch.tensor(0.5)}


def to_mxfp4(name: str, weight: torch.Tensor) -> Tensors:
    """Store the experts of gpt-oss as random 4-bit floats in their layout."""
    if weight.dim() != 3:
        return {name: weight}
    torch.manual_seed(len(name))
    num_experts, num_in, num_out = weight.shape
    blocks = torch.randint(0, 256, (num_experts, num_out, num_in // 32, 16), dtype=torch.uint8)
    exponents = torch.randint(122, 126, (num_experts, num_out, num_in // 32), dtype=torch.uint8)
    return {f"{name}_blocks": blocks, f"{name}_scales": exponents}


def pack(numbers: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Pack ``[R, C]`` numbers along the columns into 32-bit words, the first number in the lowest bits."""
    rows, columns = numbers.shape
    per_word = 32 // num_bits
    words = torch.zeros(rows, columns // per_word, dtype=torch.int64)
    for place in range(per_word):
        words |= numbers[:, place::per_word].long() << (num_bits * place)
    return words.to(torch.uint32).view(torch.int32)


def grouped(
    weight: torch.Tensor, num_bits: int, groups: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize ``[out, in]`` weights to integers. Returns these as ``[in, out]``; scales and zeros by group and output.

    Args:
        groups: the group of each input.
    """
    most = 2**num_bits - 1
    columns, num_groups = weight.float().T, int(groups.max()) + 1
    low = torch.stack([columns[groups == group].amin(0) for group in range(num_groups)])
    high = torch.stack([columns[groups == group].amax(0) for group in range(num_groups)])
    scales = ((high - low) / most).half()
    zeros = (-low / scales.float()).round().clamp(1, most)
    numbers = (columns / scales.float()[groups] + zeros[groups]).round().clamp(0, most)
    return numbers.int(), scales, zeros.int()


def gptq(
    num_bits: int = 4, *, version: str = "gptq", act_order: bool = False
) -> tuple[dict[str, Any], Callable[[str, torch.Tensor], Tensors]]:
    """Return settings of GPTQ, and what quantizes so."""

    def quantize(name: str, weight: torch.Tensor) -> Tensors:
        torch.manual_seed(len(name))
        groups = torch.arange(weight.shape[1]) // 32
        groups = groups[torch.randperm(len(groups))] if act_order else groups
        numbers, scales, zeros = grouped(weight, num_bits, groups)
        base = name.removesuffix("weight")
        return {
            f"{base}qweight": pack(numbers.T, num_bits).T,
            f"{base}qzeros": pack(zeros - 1 if version == "gptq" else zeros, num_bits),
            f"{base}scales": scales,
            f"{base}g_idx": groups.int(),
        }

    settings = {"quant_method": "gptq", "bits": num_bits, "group_size": 32, "desc_act": act_order}
    return settings | {"checkpoint_format": version}, quantize


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def to_awq(name: str, weight: torch.Tensor) -> Tensors:
    """Pack along the outputs, in the order 0 2 4 6 1 3 5 7."""

    def ordered(numbers: torch.Tensor) -> torch.Tensor:
        return pack(numbers.view(len(numbers), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1), 4)

    numbers, scales, zeros = grouped(weight, 4, torch.arange(weight.shape[1]) // 32)
    base = name.removesuffix("weight")
    return {f"{base}qweight": ordered(numbers), f"{base}qzeros": ordered(zeros), f"{base}scales": scales}


def unpacked_integers(name: str, weight: torch.Tensor, settings: dict[str, Any]) -> Tensors:
    """Return the dense weights that GPTQ or AWQ stand for, from the integers before they were packed."""
    groups = torch.arange(weight.shape[1]) // 32
    if settings.get("desc_act"):
        torch.manual_seed(len(name))
        groups = groups[torch.randperm(len(groups))]
    numbers, scales, zeros = grouped(weight, settings["bits"], groups)
    dense = (numbers - zeros[groups]).float() * scales.float()[groups]
    return {name: dense.T.to(weight.dtype)}


def mixed(directory: Path) -> tuple[Path, Tensors]:
    """Write a checkpoint of compressed-tensors as llm-compressor writes those of several schemes, in three files.

    Attention is in FP8, MLPs and the output layer in integers of 4 and 8 bits in groups, what ``ignore`` names is left
    as it is, and scales of a KV cache are there.

    Returns:
        The model, and its weights as compressed-tensors itself decompresses them.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    schemes: dict[str, dict[str, Any]] = {
        r"re:.*self_attn.*": {"num_bits": 8, "type": "float", "strategy": "channel"},
        r"re:.*mlp.*": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False},
        r"re:.*lm_head": {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 64},
    }
    kinds = ("float-quantized", "pack-quantized", "pack-quantized")
    make_model(directory, "llama", dtype=torch.bfloat16, num_key_value_heads=2, tie_word_embeddings=False)
    files: list[Tensors] = [{}, {}, {}]
    expected = load_file(directory / "model.safetensors")
    for idx, (name, weight) in enumerate(list(expected.items())):
        target = next((target for target in schemes if re.search(target[3:], name)), None)
        made = {name: weight}
        if target is not None and weight.dim() == 2 and "layers.0.self_attn" not in name:
            kind = kinds[list(schemes).index(target)]
            made = compressed(**schemes[target], kind=kind)[1](name, weight)
            base = name.removesuffix("weight")
            scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**schemes[target]))
            parts = {key.removeprefix(base): value for key, value in made.items()}
            expected[name] = BaseCompressor.get_value_from_registry(kind).decompress(parts, scheme)["weight"].bfloat16()
        if name.endswith("k_proj.weight"):
            made |= {name.replace("k_proj.weight", scale): torch.tensor([0.5]) for scale in ("k_scale", "v_scale")}
        files[idx % 3] |= {key: value.contiguous() for key, value in made.items()}
    for idx, tensors in enumerate(files):
        save_file(tensors, directory / f"model-{idx}.safetensors", metadata={"format": "pt"})
    where = {name: f"model-{idx}.safetensors" for idx, tensors in enumerate(files) for name in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (directory / "model.safetensors").unlink()
    groups = {
        f"group_{idx}": {"targets": [target], "weights": weights, "format": kind}
        for idx, ((target, weights), kind) in enumerate(zip(schemes.items(), kinds, strict=True))
    }
    settings = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "ignore": [r"re:.*layers\.0\.self_attn.*"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"},
        "config_groups": groups,
    }
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return directory, expected


def compressed(
    *, kind: str | None = None, **weights: Any
) -> tuple[dict[str, Any], Callable[[str, torch.Tensor], Tensors]]:
    """Return settings of compressed-tensors, and its own compressor.

    Args:
        kind: the layout; None is the usual one.
        weights: the arguments of its ``QuantizationArgs``.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    kind = (
        kind
        or {"int": "pack-quantized" if args.num_bits == 4 else "int-quantized", "float": "float-quantized"}[args.type]
    )

    def quantize(name: str, weight: torch.Tensor) -> Tensors:
        rows, columns = weight.shape
        strategy = str(getattr(args.strategy, "value", args.strategy))
        if strategy == "block":
            height, width = args.block_structure
            parts = weight.view(rows // height, height, columns // width, width)
            low, high = parts.amin((1, 3)), parts.amax((1, 3))
        else:
            size = {"group": args.group_size, "channel": columns}.get(strategy)
            parts = weight.view(1, 1, -1) if size is None else weight.view(rows, -1, size)
            low, high = parts.amin(-1), parts.amax(-1)
        scale, zero = calculate_qparams(low, high, args)
        if strategy == "tensor":
            scale, zero = scale.view(1), zero.view(1)
        tensors = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        made = BaseCompressor.get_value_from_registry(kind).compress(tensors, scheme)
        return {name.removesuffix("weight") + part: value for part, value in made.items()}

    settings = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}},
    }
    return settings, quantize
