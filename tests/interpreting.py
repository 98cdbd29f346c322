"""Triton's interpreter, which runs kernels on a CPU. Import this before any module that defines kernels.

Whether kernels are interpreted is decided when Triton is imported, so a process does one or the other: conftest.py sets
TRITON_INTERPRET where there is no GPU. Multiplying bfloat16
numbers gives garbage there (it takes their bits for integers): test float32 and float16.
"""

import os
from typing import Any

import pytest

pytest.importorskip("triton")

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

if DEVICE == "cpu":
    from triton.runtime import interpreter

    _patch_tensor = interpreter._patch_lang_tensor

    def _patch_for_numpy(tensor: Any, *args: Any) -> None:
        """Triton 3.6 calls ``int`` on arrays of one element, which numpy 2.4 refuses; Triton 3.8 does not."""
        _patch_tensor(tensor, *args)
        (scope,) = args
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_for_numpy
