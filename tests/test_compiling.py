"""The C++ kernel: what happens where it cannot be compiled, or cannot be trusted."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from job.engine.paged.attention import trial
from job.engine.paged.attention.backends import COMPILED, TORCH, choose_backend
from job.engine.paged.attention.cache import LayerShape
from job.engine.paged.attention.interface import AttentionArgs
from job.engine.paged.cpu import attention as cpu_attention
from job.engine.paged.cpu.compiling import NoLibrary, compiled_library
from job.launch.environment import read_process_info
from job.launch.replica import Replica
from tests.serving import build_as_the_job_does, complete, expected_tokens, make_prompts, tokens

SHAPES = {0: LayerShape(2, 16, 16, torch.bfloat16, group=3), 1: LayerShape(1, 24, 8, torch.float32, group=4)}


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compile again, into a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu_attention._kernel.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def replica() -> Replica:
    """A process by itself."""
    return Replica(read_process_info({}, 1))


def constants(**changes: int) -> dict[str, int]:
    return {"GROUP": 3, "KEY_SIZE": 16, "VALUE_SIZE": 16, "PAGE_TOKENS": 32, "NUMBER_BITS": 16} | changes


def test_kernels_agree_with_plain_operations_in_bfloat16_and_float32(replica: Replica) -> None:
    assert choose_backend(SHAPES, replica) == (COMPILED, None)


def test_a_kernel_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_cache: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\nexec c++ "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    for _ in range(2):
        compiled_library(cpu_attention.SOURCE, constants())
    compiled_library(cpu_attention.SOURCE, constants(GROUP=1))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("-DGROUP=3" in call for call in calls) == 1
    assert sum("-DGROUP=1" in call for call in calls) == 1
    assert sorted(path.suffix for path in (fresh_cache / "dataset-inference-job").iterdir()) == [".so", ".so"]


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, replica: Replica) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    backend, reason = choose_backend(SHAPES, replica)
    assert backend is TORCH
    assert reason == "there is no C++ compiler (c++, g++, clang++ or the one that CXX names)"


@pytest.mark.parametrize(
    ("compiler", "told"),
    [
        ("c++ --no-such-option", "unrecognized command-line option"),
        ("/no/such/compiler", "/no/such/compiler"),
        ("'unfinished", "No closing quotation"),
    ],
)
def test_a_compiler_that_fails_is_told(compiler: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(NoLibrary, match=told):
        compiled_library(cpu_attention.SOURCE, constants())


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replica: Replica
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    backend, reason = choose_backend(SHAPES, replica)
    assert backend is TORCH and reason is not None and str(tmp_path / "file") in reason


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch, replica: Replica) -> None:
    plain = trial.plain
    monkeypatch.setattr(trial, "plain", lambda *args: plain(*args) + 1)
    backend, reason = choose_backend(SHAPES, replica)
    assert backend is TORCH and reason is not None and reason.startswith("its results are off by 1.")


@pytest.mark.parametrize("is_wrong", ["single tokens", "windows"])
def test_a_kernel_that_is_wrong_in_one_case_alone_is_found_out(
    is_wrong: str, monkeypatch: pytest.MonkeyPatch, replica: Replica
) -> None:
    attend = cpu_attention.CompiledAttention.__call__

    def spoilt(self: Any, layer_idx: int, query: Any, key: Any, value: Any, args: AttentionArgs) -> torch.Tensor:
        is_met = args.window is not None if is_wrong == "windows" else len(query) == 2
        return attend(self, layer_idx, query, key, value, args) + float(is_met)

    monkeypatch.setattr(cpu_attention.CompiledAttention, "__call__", spoilt)
    assert choose_backend(SHAPES, replica)[0] is TORCH


def test_without_a_kernel_the_tokens_are_the_same(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    engine, notes = build_as_the_job_does(tiny_model("llama"))
    (note,) = notes
    assert note.startswith("attention runs in plain torch operations, which are slower: ")
    assert "/no/such/compiler" in note
    prompts = make_prompts()
    assert tokens(complete(engine, prompts)) == expected_tokens(tiny_model("llama"), prompts, 12)
