"""Compile the kernels for GPUs that are not here, and show what they take: registers, spills, shared memory.

Usage: scripts/bench compile-ahead [CAPABILITY ...] [WORD ...]

Capabilities are 80, 90 and 100 by default; words choose the launches whose names contain all of them. Registers and
spills are what ptxas says of Triton's PTX; both come with Triton. Prints a Markdown table and one JSON object as its
last line. ``TRITON_INTERPRET`` must not be set.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from job.engine.paged.attention.interface import AttentionArgs, DelayedRotation
from job.engine.paged.cuda.fused_launches import (
    Scaling,
    gate_launch,
    largest_launch,
    norm_launch,
    rotate_and_store_launch,
    rotate_launch,
)
from job.engine.paged.cuda.launches import Launch, Pool, attend_launches, blocks_for, store_launch

TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
}

SHARED_KIB = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228}
"""Shared memory of a multiprocessor, of which each block takes one more than it asks for."""

REGISTERS, WARPS, BLOCKS = 65536, {80: 64, 86: 48, 89: 48, 90: 64, 100: 64}, 32
"""What else a multiprocessor has."""

SHAPES: dict[str, tuple[int, int, int, int]] = {
    "Llama 3.1 8B": (8, 4, 128, 128),
    "SmolLM2 135M": (3, 3, 64, 64),
    "Qwen2.5 7B": (4, 7, 128, 128),
    "Gemma 2 9B": (8, 2, 256, 256),
    "gpt-oss 20B": (8, 8, 64, 64),
    "192 and 128": (16, 1, 192, 128),
}
"""Key-value heads, queries per head, sizes of keys and values."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel takes."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    num_warps: int

    def limits(self, capability: int) -> dict[str, int]:
        """Return how many blocks fit into a multiprocessor by each of its resources."""
        return {
            "registers": REGISTERS // max(1, self.registers * 32 * self.num_warps),
            "shared memory": SHARED_KIB[capability] * 1024 // (self.shared_bytes + 1024),
            "warps": WARPS[capability] // self.num_warps,
            "blocks": BLOCKS,
        }


def source_of(launch: Launch) -> ASTSource:
    """Describe a launch as Triton sees it: types, constants, and which numbers are multiples of 16."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}
    for idx, param in enumerate(launch.kernel.params):
        value = launch.arguments[param.name]
        if param.is_constexpr or value is None:
            signature[param.name], constants[(idx,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name], attrs[(idx,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[param.name] = "fp32"
        elif value == 1 and not param.do_not_specialize:
            signature[param.name], constants[(idx,)] = "constexpr", 1
        else:
            signature[param.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not param.do_not_specialize:
                attrs[(idx,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attrs)


def compile_ahead(launch: Launch, capability: int) -> Compiled:
    """Compile a launch for a GPU.

    Raises:
        RuntimeError: Triton or ptxas refuses it.
    """
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source_of(launch), target=target, options=dict(launch.options))
    words = assemble(compiled.asm["ptx"], capability)
    registers, spilled = (
        int(found[1]) if (found := re.search(pattern, words)) else 0
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    return Compiled(registers, spilled, compiled.metadata.shared, launch.options.get("num_warps", 4))


def assemble(ptx: str, capability: int) -> str:
    """Return what the assembler says of PTX."""
    target = re.search(r"\.target (sm_\w+)", ptx)
    directory = Path(triton.__file__).parent / "backends/nvidia/bin"
    assembler = directory / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "kernel.ptx"
        path.write_text(ptx, encoding="utf-8")
        command = [assembler, "-v", f"--gpu-name={target[1]}", path, "-o", path.with_suffix(".cubin")]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr + result.stdout)
    return result.stderr + result.stdout


def meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def attention_launches(
    name: str, dtype: torch.dtype, stored: torch.dtype, capability: int
) -> Iterator[tuple[str, Launch]]:
    """Yield the launches of a model's attention: decode with and without splits, a chunk, and the store."""
    num_heads, group, key_size, value_size = SHAPES[name]
    window = {"Gemma 2 9B": 4096, "gpt-oss 20B": 128}.get(name)
    sinks = meta(num_heads * group, dtype=dtype) if name == "gpt-oss 20B" else None
    args = AttentionArgs(key_size**-0.5, window, 50.0 if name == "Gemma 2 9B" else None, sinks)
    pool = Pool(*(meta(64, num_heads, 64, size, dtype=stored) for size in (key_size, value_size)))
    query = meta(256, num_heads * group, key_size, dtype=dtype)
    output = meta(256, num_heads * group, value_size, dtype=dtype)
    tiles, tables = meta(256, 4, dtype=torch.int32), meta(512, 256, dtype=torch.int32)
    for kind in ("decode", "split", "chunk"):
        shared = (SHARED_KIB[capability] - 1) * 1024
        blocks = blocks_for(group, key_size, value_size, dtype.itemsize, decode=kind != "chunk", shared_bytes=shared)
        max_splits = 4 if kind == "split" else 1
        launches = attend_launches(output, query, pool, tiles, tables, args, blocks=blocks, max_splits=max_splits)
        for launch, part in zip(launches, (kind, "combine"), strict=False):
            yield f"{name}, {part} {blocks.rows}x{blocks.keys}" if part != "combine" else f"{name}, combine", launch
    key, value = (meta(256, num_heads, size, dtype=dtype) for size in (key_size, value_size))
    places = meta(256, dtype=torch.int32)
    yield f"{name}, store", store_launch(pool, key, value, places)
    angles = meta(256, key_size, dtype=dtype)
    rotation = DelayedRotation(query, key, angles, angles)
    yield f"{name}, rotate and store", rotate_and_store_launch(query, pool, rotation, value, places)


def fused_launches(dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """Yield the launches around attention, for the sizes of Llama 3.1 8B."""
    values, weight = meta(256, 4096, dtype=dtype), meta(4096, dtype=dtype)
    yield "norm of 4096", norm_launch(values, values, values, None, weight, 1e-5, Scaling())
    yield "sum and norm of 4096", norm_launch(values, values, values, values, weight, 1e-5, Scaling())
    query, key, angles = meta(256, 32, 128, dtype=dtype), meta(256, 8, 128, dtype=dtype), meta(256, 128, dtype=dtype)
    yield "rotation of 40x128", rotate_launch(query, key, query, key, angles, angles)
    yield "gate of 14336", gate_launch(meta(256, 14336, dtype=dtype), meta(256, 28672, dtype=dtype), "silu")
    top, best = meta(256, dtype=torch.float32), meta(256, dtype=torch.int64)
    yield "largest of 128256", largest_launch(top, best, meta(256, 128256, dtype=dtype))


def launches_for(capability: int) -> Iterator[tuple[str, Launch]]:
    """Yield all launches that are worth a look on a GPU."""
    for name in SHAPES:
        for what, launch in attention_launches(name, torch.float16, torch.float16, capability):
            yield f"{what}, float16", launch
    for what, launch in attention_launches("Llama 3.1 8B", torch.bfloat16, torch.bfloat16, capability):
        yield f"{what}, bfloat16", launch
    for what, launch in fused_launches(torch.float16):
        yield f"{what}, float16", launch
    if capability >= 89:
        for what, launch in attention_launches("Llama 3.1 8B", torch.float16, torch.float8_e4m3fn, capability):
            yield f"{what}, float16 over fp8", launch


def main(words: list[str]) -> None:
    """Compile and report."""
    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter compiles nothing"
    capabilities = [int(word) for word in words if word.isdigit()] or [80, 90, 100]
    parts = [word for word in words if not word.isdigit()]
    results: dict[str, dict[str, Any]] = {}
    print(f"Triton {triton.__version__}\n\n| launch | GPU | registers | spilled | shared | blocks, limited by |")
    print("|---|---|---|---|---|---|")
    for capability in capabilities:
        for name, launch in launches_for(capability):
            if not all(part in name for part in parts):
                continue
            found = compile_ahead(launch, capability)
            limits = found.limits(capability)
            limit = min(limits, key=limits.__getitem__)
            results[f"sm_{capability}, {name}"] = {"registers": found.registers, "spilled": found.spilled_bytes}
            print(
                f"| {name} | sm_{capability} | {found.registers} | {found.spilled_bytes} B "
                f"| {found.shared_bytes / 1024:.0f} KiB | {limits[limit]}, {limit} |",
                flush=True,
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
