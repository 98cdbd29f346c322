"""Attention over the paged cache with our own C++ kernel, for CPUs.

Each token of a step reads the pages of its sequence once. Plain operations copy windows, pad them, and pass over the
scores six times.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from job.engine.paged.attention.cache import KVCache, LayerShape, Placement
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.attention.layout import Layout
from job.engine.paged.cpu.compiling import NoLibrary, compiled_library

SOURCE = Path(__file__).with_name("attention_kernel.cpp")

PAGE_TOKENS = 32
"""Larger pages waste more of a sequence's last one."""

NUMBER_BITS = {torch.bfloat16: 16, torch.float32: 32}

Function = Callable[..., None]


class CompiledAttention:
    """Implements ``Attend`` for one step."""

    def __init__(self, cache: KVCache, layout: Layout, device: torch.device) -> None:
        """Attend in any step. Every layer must have a kernel; see ``problem``."""
        self._cache = cache
        self._placement = Placement.of(cache, layout, device)
        self._tables: npt.NDArray[np.int64] = np.ascontiguousarray(layout.pages)
        self._sequences, self._ends = layout.token_sequences, layout.positions + 1

    def __call__(
        self, layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, args: AttentionArgs
    ) -> torch.Tensor:
        """See ``Attend``."""
        self._placement.write(layer_idx, key, value)
        keys, values = self._cache.keys[layer_idx], self._cache.values[layer_idx]
        num_heads, group = key.shape[1], query.shape[1] // key.shape[1]
        query = query.to(keys.dtype).contiguous()
        sinks = None if args.sinks is None else args.sinks.float().contiguous()
        output = query.new_empty(*query.shape[:2], values.shape[-1])
        attend = _kernel(group, keys.shape[-1], values.shape[-1], self._cache.page_tokens, keys.dtype)
        attend(
            *(tensor.data_ptr() for tensor in (output, query, keys, values)),
            *(array.ctypes.data for array in (self._tables, self._sequences, self._ends)),
            None if sinks is None else sinks.data_ptr(),
            args.scale,
            args.softcap or 0.0,
            args.window or 0,
            len(query),
            num_heads,
            self._tables.shape[1],
            torch.get_num_threads(),
        )
        return output


def problem(shapes: Mapping[int, LayerShape], device: torch.device) -> str | None:
    """Return why the kernel cannot serve a model's layers on a device, or None. Compiles what is not compiled yet."""
    if device.type != "cpu":
        return f"the kernel for CPUs cannot serve {device.type}"
    for shape in shapes.values():
        if shape.cache_dtype != shape.dtype:
            return "the kernel for CPUs does not read a KV cache in fp8"
        if shape.dtype not in NUMBER_BITS:
            return f"the kernel for CPUs does not support {shape.dtype}"
        try:
            _kernel(shape.group, shape.key_size, shape.value_size, PAGE_TOKENS, shape.dtype)
        except NoLibrary as error:
            return str(error)
    return None


@functools.cache
def _kernel(group: int, key_size: int, value_size: int, page_tokens: int, dtype: torch.dtype) -> Function:
    constants = {
        "GROUP": group,
        "KEY_SIZE": key_size,
        "VALUE_SIZE": value_size,
        "PAGE_TOKENS": page_tokens,
        "NUMBER_BITS": NUMBER_BITS[dtype],
    }
    attend: Any = compiled_library(SOURCE, constants).paged_attention
    attend.restype = None
    attend.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_float] * 2 + [ctypes.c_int64] * 5
    kernel: Function = attend
    return kernel
