"""A KV cache in 8-bit floats: what is stored, that rows do not depend on each other, and that a run keeps to it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from job.config import EngineConfig, ModelConfig
from job.engine.build import build_paged
from job.engine.model.kv_size import FP8 as FP8_NAME
from job.engine.model.kv_size import kv_bytes_per_token, stored_dtype
from job.engine.paged.attention.cache import FP8, to_stored
from job.errors import JobError, UsageError
from job.output.parts.defaults import without_defaults
from job.output.parts.differences import describe_differences
from job.output.parts.manifest import Manifest
from tests.conftest import Result
from tests.serving import MODES, Served, cache_bytes, complete, load, make_engine, make_prompts, serve, tokens
from tests.test_run import write_jsonl

RunJob = Callable[..., Result]


@pytest.fixture(scope="module")
def served(tiny_model: Callable[..., Path]) -> Served:
    found = serve(tiny_model())
    return replace(found, model=replace(found.model, cache_dtype=FP8))


@pytest.fixture(scope="module")
def alone(served: Served) -> list[list[int]]:
    """What rows get that are computed one by one."""
    return tokens(complete(make_engine(served, **MODES["one row"]), make_prompts()))


def test_what_is_too_large_becomes_the_largest_and_what_overflowed_is_not_hidden() -> None:
    numbers = torch.tensor([0.0, 1.0, 1.06, 448.0, 500.0, -1e6, torch.inf, -torch.inf, torch.nan])
    found = to_stored(numbers, FP8).float()
    assert found[:6].tolist() == [0, 1, 1, 448, 448, -448] and found[6:].isnan().all()
    assert to_stored(numbers, torch.float32) is numbers


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"one row"}))
def test_rows_do_not_depend_on_their_batch(served: Served, alone: list[list[int]], mode: str) -> None:
    """Chunks, shared prefixes and preemptions: keys are read from the cache in each case, and rounded alike."""
    options: dict[str, Any] = dict(MODES[mode])
    num_pages = options.pop("num_pages", None)
    if num_pages is not None:
        shapes = {idx: replace(shape, stored=FP8) for idx, shape in served.shapes.items()}
        options["config"] = {**options["config"], "kv_cache_memory": cache_bytes(shapes, num_pages)}
    engine = make_engine(served, **options)
    assert engine.no_kernel == "the kernel for CPUs does not read a KV cache in fp8"
    assert tokens(complete(engine, make_prompts())) == alone


def test_tokens_are_mostly_those_of_an_exact_cache(served: Served, alone: list[list[int]]) -> None:
    exact = tokens(complete(make_engine(serve_exactly(served)), make_prompts()))
    assert alone != exact, "the cache was rounded"
    same = sum(a == b for left, right in zip(alone, exact, strict=True) for a, b in zip(left, right, strict=False))
    assert same > 0.3 * sum(map(len, exact))


def serve_exactly(served: Served) -> Served:
    return replace(served, model=replace(served.model, cache_dtype=None))


def test_it_takes_a_quarter_of_the_memory_of_float32(served: Served) -> None:
    pages = [
        make_engine(one, config={"kv_cache_memory": 2**22}).scheduler.pages.num_pages
        for one in (serve_exactly(served), served)
    ]
    assert pages[1] == 4 * pages[0]
    config = served.model.module.config
    assert stored_dtype("fp8", "float16") == FP8_NAME and stored_dtype("auto", "float16") == "float16"
    exact, narrow = (kv_bytes_per_token(config, dtype, 1) for dtype in ("float16", FP8_NAME))
    assert exact is not None and narrow is not None and exact == 2 * narrow


def test_a_model_that_the_paged_engine_cannot_serve_is_refused(tiny_model: Callable[..., Path]) -> None:
    """Its rows would be those of a run without the option, under the name of one with it."""
    model, replica = load(tiny_model("gpt_neo"))
    with pytest.raises(JobError, match=r"^--kv-cache-dtype fp8 needs the paged engine, which cannot serve model type"):
        build_paged(
            replace(model, cache_dtype=FP8), EngineConfig(), replica, should_stop=lambda: False, note=lambda text: None
        )


def test_a_run_keeps_its_dtype_and_older_runs_go_on() -> None:
    model = {"fingerprint": "a", "tokenizer": "b", "dtype": "float16"}
    sections: dict[str, Any] = {"dataset": {}, "prompt": {}, "sampling": {}, "modes": {}, "columns": {}, "plan": {}}
    older, auto, fp8 = (
        Manifest(without_defaults({**sections, "model": model | given}), {})
        for given in ({}, {"kv_cache_dtype": "auto"}, {"kv_cache_dtype": "fp8"})
    )
    assert older.digest == auto.digest and describe_differences(older, auto) is None
    assert describe_differences(older, fp8) == (
        'is another run: --kv-cache-dtype was "auto", now "fp8". Use a new --output, or the old value.'
    )
    with pytest.raises(UsageError, match=r"--kv-cache-dtype is 'int4'; it must be one of auto, fp8"):
        ModelConfig(model="m", kv_cache_dtype="int4")


def test_a_job_says_what_reads_the_cache(run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"question {idx}"} for idx in range(3)])
    args = ["run", "--model", tiny_model(), "--dataset", data, "--max-new-tokens", 3, "--output", tmp_path / "out"]
    result = run_job(*args, "--kv-cache-dtype", "fp8")
    assert result.exit_code == 0 and "the kernel for CPUs does not read a KV cache in fp8" in result.stderr
    refused = run_job(*args)
    assert refused.exit_code == 2 and '--kv-cache-dtype was "fp8", now "auto"' in refused.stderr
