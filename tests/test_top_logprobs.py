"""The most likely tokens at each place: which they are, in both engines, and their way into the output."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from job.config import EngineConfig
from job.engine.logits.reductions import log_totals
from job.engine.logits.token_scores import top_tokens, unpack_top_tokens
from job.engine.static.engine import StaticEngine
from job.output.parts.rows import from_batch, to_batch
from job.records import Completion
from tests import oracle
from tests.serving import ask, finish, generate, load, make_engine, make_prompts, serve
from tests.test_run import RunJob, read_output, write_jsonl


def top_of(logits: torch.Tensor, number: int) -> tuple[Any, Any]:
    packed = top_tokens(logits, log_totals(logits), number)
    return unpack_top_tokens(packed.numpy().tobytes(), number)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab_size", "number"), [(20, 20), (300, 1), (5000, 7), (6400, 20), (50257, 40)])
def test_the_most_likely_tokens_are_those_of_topk(vocab_size: int, number: int, dtype: torch.dtype) -> None:
    """Whether or not they are looked for in blocks. Of equal logits, any may be among them, but each only once."""
    logits = torch.randn(9, vocab_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[3, :] = 1.5
    logits[4, 2:] = -torch.inf
    ids, logprobs = top_of(logits, number)
    expected = logits.float().log_softmax(dim=-1)
    values = expected.topk(number, dim=-1).values
    np.testing.assert_allclose(logprobs, values.numpy(), atol=1e-4)
    assert ids.shape == (9, number) and all(len({*row}) == number for row in ids.tolist())
    np.testing.assert_allclose(expected.gather(-1, torch.from_numpy(ids).long()).numpy(), logprobs, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_totals_are_as_exact_as_float32_allows(dtype: torch.dtype) -> None:
    """A ``log_softmax`` of 49,152 float32 logits is off by 1e-5, always to the same side."""
    logits = (3 * torch.randn(40, 49152, generator=torch.Generator().manual_seed(1))).to(dtype)
    logits[3], logits[4, 5:], logits[5, 7] = -torch.inf, -torch.inf, torch.inf
    expected = logits.double().logsumexp(dim=-1)
    for top in (None, logits.amax(dim=-1), logits.amax(dim=-1).float()):
        torch.testing.assert_close(log_totals(logits, top).double(), expected, atol=3e-6, rtol=0)
    logits[6, 8] = torch.nan
    assert log_totals(logits).isnan().nonzero()[:, 0].tolist() == [6]


@pytest.mark.parametrize("name", ["paged", "static"])
def test_rows_with_different_numbers_get_what_transformers_says(tiny_model: Callable[..., Path], name: str) -> None:
    """Before temperature and masks, in one batch with rows that want none."""
    asked = [{}, {"num_top_logprobs": 5}, {"num_top_logprobs": 3, "temperature": 1.5}, {"logprobs": True}]
    requests = [ask(prompt, generate(**asked[idx % 4]), row_idx=idx) for idx, prompt in enumerate(make_prompts()[:8])]
    model, replica = load(tiny_model())
    engines = {
        "paged": lambda: make_engine(serve(tiny_model())),
        "static": lambda: StaticEngine(model, EngineConfig(max_batch_rows=8), replica),
    }
    plain = oracle.load(tiny_model())
    for idx, generation in enumerate(finish(engines[name](), requests)):
        number = asked[idx % 4].get("num_top_logprobs", 0)
        assert (generation.top_ids is None) == (number == 0)
        assert (generation.logprobs is None) == (idx % 4 == 0), "those of the generated tokens come with them"
        if not number:
            continue
        prompt, ids = generation.request.prompt_ids, list(generation.token_ids)
        with torch.inference_mode():
            logits = plain(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        values, tokens = logits.log_softmax(dim=-1).topk(number, dim=-1)
        assert generation.top_ids.tolist() == tokens.tolist() and generation.top_ids.dtype == np.int32
        np.testing.assert_allclose(generation.top_logprobs, values.numpy(), atol=1e-4)


def test_matrices_go_through_arrow_without_an_object_for_each_number() -> None:
    """A shard of 10,000 rows would take gigabytes as lists."""
    columns: dict[str, Any] = {"row_idx": pa.int64(), "sample_idx": pa.int32(), "completion": pa.string()}
    columns |= {"finish_reason": pa.string(), "num_prompt_tokens": pa.int32(), "num_completion_tokens": pa.int32()}
    columns |= {"error": pa.string(), "ids": pa.list_(pa.list_(pa.int32(), 3))}
    schema = pa.schema({**columns, "tops": pa.list_(pa.list_(pa.float16(), 3))})
    values: list[dict[str, Any]] = [
        {"ids": np.arange(6, dtype=np.int32).reshape(2, 3), "tops": np.full((2, 3), -0.5, np.float16)},
        {},
        {"ids": np.empty((0, 3), np.int32), "tops": np.empty((0, 3), np.float16)},
        {
            "ids": np.ma.array([[1, 2, 0], [0, 0, 0]], np.int32, mask=[[0, 0, 1], [1, 1, 1]]),
            "tops": np.ma.array([[-1, -2, 0], [0, 0, 0]], np.float16, mask=[[0, 0, 1], [1, 1, 1]]),
        },
        {"ids": np.array([[9, 8, 7]], np.int32), "tops": np.array([[0, -1, -math.inf]], np.float16)},
    ]
    base: dict[str, Any] = {"sample_idx": 0, "prompt": None, "completion": "", "finish_reason": "stop", "error": None}
    rows = [
        Completion(row_idx=idx, num_prompt_tokens=1, num_completion_tokens=1, values=of_row, **base)
        for idx, of_row in enumerate(values)
    ]
    batch = to_batch(rows, schema)
    batch.validate(full=True)
    assert batch.to_pylist()[0]["ids"] == [[0, 1, 2], [3, 4, 5]] and batch.to_pylist()[1]["ids"] is None
    assert batch.to_pylist()[3]["ids"] == [[1, 2, None], [None] * 3], "a row that asks for fewer"
    for part in (batch, batch.slice(1), batch.slice(3, 2), batch.slice(4, 1), batch.slice(0, 0)):
        found = [row.values for row in from_batch(part)]
        expected = values[len(values) - len(part) :] if len(part) else []
        assert [{*row} for row in found] == [{*row} for row in expected]
        for row, of_row in zip(found, expected, strict=True):
            for name, matrix in of_row.items():
                assert row[name].dtype == matrix.dtype
                assert np.ma.allequal(row[name], matrix, fill_value=False) or row[name].tolist() == matrix.tolist()
        assert to_batch(from_batch(part), schema).equals(part)


def test_they_are_written(run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    data = write_jsonl(
        tmp_path / "data.jsonl", [{"prompt": f"question {idx}?"} for idx in range(5)] + [{"prompt": None}]
    )
    command = ["run", "--model", tiny_model(), "--dtype", "float32", "--dataset", data, "--max-new-tokens", 6]
    command += ["--top-logprobs", 4, "--max-error-rate", 1, "--temperature", 0.7]
    for engine in ("paged", "static"):
        result = run_job(*command, "--engine", engine, "--output", tmp_path / engine)
        assert result.exit_code == 0, result.stderr
        assert run_job("verify", tmp_path / engine).exit_code == 0
    table, static = (read_output(tmp_path / engine) for engine in ("paged", "static"))
    assert table["top_token_ids"].equals(static["top_token_ids"])
    assert table.schema.field("top_token_ids").type == pa.list_(pa.list_(pa.int32(), 4))
    assert table.schema.field("top_logprobs").type == pa.list_(pa.list_(pa.float16(), 4))
    for row in table.to_pylist()[:5]:
        assert len(row["top_logprobs"]) == len(row["token_logprobs"]) == row["num_completion_tokens"]
        for ids, logprobs, token, logprob in zip(
            row["top_token_ids"], row["top_logprobs"], row["token_ids"], row["token_logprobs"], strict=True
        ):
            assert [*logprobs] == sorted(logprobs, reverse=True) and sum(map(math.exp, logprobs)) < 1.01
            if token in ids:
                assert logprobs[ids.index(token)] == pytest.approx(logprob, abs=0.01)
    assert table.to_pylist()[5]["top_logprobs"] is None
    exported = tmp_path / "out.jsonl"
    assert run_job("export", tmp_path / "paged", "--to", exported).exit_code == 0
    assert json.loads(exported.read_text().splitlines()[0])["top_token_ids"] == table["top_token_ids"][0].as_py()


def test_a_kill_and_a_retry_keep_them(run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Through the journal, and out of a part that is written again."""
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "ab"}, {"prompt": None}, {"prompt": "cd"}])
    command = ["run", "--model", tiny_model(), "--dtype", "float32", "--dataset", data, "--max-new-tokens", 3]
    command += ["--top-logprobs", 2, "--max-error-rate", 1, "--output", tmp_path / "run"]
    assert run_job(*command).exit_code == 0
    before = read_output(tmp_path / "run")
    assert run_job("retry", tmp_path / "run").exit_code == 0
    assert run_job(*command).exit_code == 0
    assert read_output(tmp_path / "run").equals(before)
    assert pq.read_schema(next((tmp_path / "run/data").iterdir())).names[-2:] == ["top_token_ids", "top_logprobs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--top-logprobs", 300), "--top-logprobs 300 is more than the 258 tokens of the model's vocabulary."),
        (("--top-logprobs", -1), "top-logprobs"),
        (("--top-logprobs", 5, "--choices", "a", "--choices", "b"), "--top-logprobs and --choices were given together"),
        (("--top-logprobs", 5, "--score-column", "prompt"), "were given together"),
    ],
)
def test_what_cannot_be_returned_is_refused_in_one_line(
    run_job: RunJob, tiny_model: Callable[..., Path], tmp_path: Path, options: tuple[Any, ...], message: str
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "x"}])
    result = run_job("run", "--model", tiny_model(), "--dataset", data, "--output", tmp_path / "run", *options)
    assert result.exit_code == 2 and message in result.stderr
