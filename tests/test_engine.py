"""StaticEngine against the oracle: equal tokens in fp32, on every architecture, at tensor-parallel 1 and 2."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from job.config import EngineConfig
from job.engine.logits import pipeline
from job.engine.model import loading
from job.engine.model.info import resolve_dtype
from job.engine.model.tensor_parallel import check_tensor_parallel
from job.engine.static.engine import StaticEngine
from job.errors import JobError, UsageError
from job.tasks import Generate
from tests.conftest import finish, start_processes
from tests.oracle import greedy
from tests.ranks import Ranks
from tests.serving import ask, complete, generate, load, tokens
from tests.tiny import ARCHITECTURES

MAX_NEW_TOKENS = 12

BREAKS = ("row", "memory", "leader's memory")
"""Ways to fail at two ranks, see ``engine_process.break_model``."""


def make_prompts(num: int = 10) -> list[list[int]]:
    """Return prompts of mixed lengths, 1 to 60 tokens."""
    rng = random.Random(1)
    return [[rng.randrange(2, 258) for _ in range(rng.choice([1, 5, 17, 40, 60]))] for _ in range(num)]


def make_engine(
    model_dir: Path,
    *eos_token_ids: int,
    max_batch_rows: int = 4,
    should_stop: Callable[[], bool] = lambda: False,
) -> StaticEngine:
    """Return an engine on a model in this process, whose rows end at the model's own token or at these."""
    model, replica = load(model_dir)
    if eos_token_ids:
        model = dataclasses.replace(model, eos_token_ids=eos_token_ids)
    return StaticEngine(model, EngineConfig(max_batch_rows=max_batch_rows), replica, should_stop)


def module_of(engine: StaticEngine) -> Any:
    return engine._tasks[Generate]._model.module  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_transformers_on_one_process(tiny_model: Callable[..., Path], name: str) -> None:
    """Batches of mixed lengths give what each prompt gives alone."""
    prompts = make_prompts()
    generations = complete(make_engine(tiny_model(name)), prompts)
    assert tokens(generations) == greedy(tiny_model(name), prompts, MAX_NEW_TOKENS)


@pytest.fixture(scope="module")
def on_two_ranks(tiny_model: Callable[..., Path], two_ranks: Ranks) -> dict[str, list[Any]]:
    """Run all architectures, and a sampled job, on two ranks."""
    greedy_params = {"max_new_tokens": MAX_NEW_TOKENS}
    jobs = {name: (tiny_model(name), greedy_params) for name in ARCHITECTURES}
    jobs["sampled"] = (tiny_model("llama"), {**greedy_params, "temperature": 1.0, "top_p": 0.9, "seed": 3})
    for breaks in BREAKS:
        jobs[breaks] = (tiny_model("llama"), greedy_params)
    outputs = two_ranks.run(
        {
            name: {"model": str(model), "prompts": make_prompts(), "params": params}
            | {"engine": "static", "config": {"max_batch_rows": 4}}
            | ({"breaks": name} if name in BREAKS else {})
            for name, (model, params) in jobs.items()
        }
    )
    return {name: output["generations"] for name, output in outputs.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_transformers_on_two_ranks(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, list[Any]], name: str
) -> None:
    """The model that AutoTP has cut gives the tokens of the whole one, uneven heads included."""
    assert [ids for _, ids, _, _ in on_two_ranks[name]] == greedy(tiny_model(name), make_prompts(), MAX_NEW_TOKENS)


@pytest.mark.parametrize("breaks", BREAKS)
def test_failures_on_two_ranks_cost_no_other_row(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, list[Any]], breaks: str
) -> None:
    """Both ranks leave the batch together and try smaller ones, also if only the leader has failed."""
    expected = greedy(tiny_model("llama"), make_prompts(), MAX_NEW_TOKENS)
    num_errors = 0
    for (_, ids, _, error), prompt, tokens_alone in zip(on_two_ranks[breaks], make_prompts(), expected, strict=True):
        if breaks == "row" and 99 in prompt + tokens_alone[:-1]:
            assert "an odd row" in error
            num_errors += 1
        else:
            assert (ids, error) == (tokens_alone, None)
    assert (num_errors > 0) == (breaks == "row")


def test_sampling_does_not_depend_on_ranks_or_batches(
    tiny_model: Callable[..., Path], on_two_ranks: dict[str, list[Any]]
) -> None:
    """Law 5: a row's draws are its own."""
    task = generate(temperature=1.0, top_p=0.9, seed=3)
    alone = tokens(complete(make_engine(tiny_model("llama"), max_batch_rows=1), make_prompts(), task))
    together = tokens(complete(make_engine(tiny_model("llama"), max_batch_rows=10), make_prompts(), task))
    other = generate(temperature=1.0, top_p=0.9, seed=4)
    other_seed = tokens(complete(make_engine(tiny_model("llama")), make_prompts(), other))
    assert alone == together == [ids for _, ids, _, _ in on_two_ranks["sampled"]]
    assert alone != other_seed


def test_repetition_penalty_equals_transformers_although_rows_are_padded(tiny_model: Callable[..., Path]) -> None:
    """transformers' own processor penalizes the padding id in padded rows; alone, a row has none."""
    from transformers import AutoModelForCausalLM

    prompts = make_prompts()
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=MAX_NEW_TOKENS, do_sample=False, repetition_penalty=1.7)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]
    assert tokens(complete(make_engine(tiny_model("llama")), prompts, generate(repetition_penalty=1.7))) == expected
    assert expected != greedy(tiny_model("llama"), prompts, MAX_NEW_TOKENS)


def test_a_row_ends_at_eos_unless_eos_is_ignored(tiny_model: Callable[..., Path]) -> None:
    """``finish_reason`` says which, and the count includes the end-of-sequence token."""
    first_token = complete(make_engine(tiny_model("llama")), [[5, 6, 7]])[0].token_ids[0]
    (stopped,) = complete(make_engine(tiny_model("llama"), first_token), [[5, 6, 7]])
    assert (list(stopped.token_ids), stopped.finish_reason) == ([first_token], "stop")
    ignoring = generate(max_new_tokens=5, ignore_eos=True)
    (ignored,) = complete(make_engine(tiny_model("llama"), first_token), [[5, 6, 7]], ignoring)
    assert (len(ignored.token_ids), ignored.token_ids[0], ignored.finish_reason) == (5, first_token, "length")


def test_a_stop_request_leaves_the_batch_within_one_token(tiny_model: Callable[..., Path]) -> None:
    """The requests stay pending, in order, and nothing is returned."""
    asked: list[int] = []
    most = [5]
    engine = make_engine(tiny_model("llama"), should_stop=lambda: len(asked) >= most[0] or bool(asked.append(1)))
    for row_idx in range(3):
        engine.submit(ask([5, 6, 7], row_idx=row_idx))
    assert engine.step() == []
    assert engine.num_pending == 3
    assert len(asked) == 5
    most[0] = 1000
    assert [g.request.row_idx for g in engine.step()] == [0, 1, 2]


def break_forward(engine: StaticEngine, is_broken: Callable[[torch.Tensor], bool], error: Exception) -> None:
    """Let the model raise on some inputs."""
    forward = module_of(engine).forward

    def wrapped(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if is_broken(input_ids):
            raise error
        return forward(input_ids=input_ids, **kwargs)

    module_of(engine).forward = wrapped


def test_out_of_memory_is_met_with_smaller_batches(tiny_model: Callable[..., Path]) -> None:
    """All rows are completed, and later batches stay small from the start."""
    engine = make_engine(tiny_model("llama"), max_batch_rows=8)
    sizes: list[int] = []

    def too_large(input_ids: torch.Tensor) -> bool:
        sizes.append(len(input_ids))
        return len(input_ids) > 2

    break_forward(engine, too_large, torch.OutOfMemoryError("CUDA out of memory"))
    prompts = [[5 + i, 6, 7] for i in range(12)]
    generations = complete(engine, prompts)
    assert tokens(generations) == greedy(tiny_model("llama"), prompts, MAX_NEW_TOKENS)
    assert [size for size in sizes if size > 2] == [8, 4]


def test_a_row_too_large_for_the_memory_is_an_error_row(tiny_model: Callable[..., Path]) -> None:
    """It fails alone; the others do not."""
    engine = make_engine(tiny_model("llama"))
    error = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    break_forward(engine, lambda ids: 99 in ids, error)
    generations = complete(engine, [[5, 6], [99, 6], [7, 6], [8, 6], [9, 9]])
    assert [g.error is None for g in generations] == [True, False, True, True, True]
    assert str(generations[1].error).startswith("out_of_memory: 2 prompt tokens")


def test_a_row_on_which_the_model_fails_is_an_error_row(tiny_model: Callable[..., Path]) -> None:
    """Halving the batch finds it."""
    engine = make_engine(tiny_model("llama"), max_batch_rows=8)
    break_forward(engine, lambda ids: 99 in ids, RuntimeError("the mask has a strange shape"))
    prompts = [[5, 6], [99, 6], [7, 6], [8, 6], [9, 9]]
    generations = complete(engine, prompts)
    assert str(generations[1].error) == "engine_error: 2 prompt tokens: RuntimeError: the mask has a strange shape"
    good = [0, 2, 3, 4]
    assert [list(generations[i].token_ids) for i in good] == greedy(
        tiny_model("llama"), [prompts[i] for i in good], MAX_NEW_TOKENS
    )


def test_a_broken_device_ends_the_run(tiny_model: Callable[..., Path]) -> None:
    """After a CUDA error every result is suspect: no row is blamed for it."""
    engine = make_engine(tiny_model("llama"))
    break_forward(engine, lambda ids: True, RuntimeError("CUDA error: device-side assert triggered"))
    engine.submit(ask([5]))
    with pytest.raises(JobError, match="device"):
        engine.step()


@pytest.mark.parametrize("error", [KeyError("odd"), ZeroDivisionError("odd"), AssertionError("odd")])
def test_whatever_the_model_raises_on_a_row_is_an_error_of_that_row(
    tiny_model: Callable[..., Path], error: Exception
) -> None:
    """A regression: only three classes of exceptions were; others ended the run, at the same row at every restart."""
    engine = make_engine(tiny_model("llama"))
    break_forward(engine, lambda ids: 99 in ids, error)
    generations = complete(engine, [[5, 6], [99, 6]])
    assert [g.error is None for g in generations] == [True, False]
    assert "odd" in str(generations[1].error)


def test_memory_that_runs_out_while_choosing_makes_batches_smaller(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader alone holds the copies of [rows, vocabulary] that sampling takes."""
    largest = pipeline.largest

    def too_large(logits: torch.Tensor) -> Any:
        if len(logits) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return largest(logits)

    monkeypatch.setattr(pipeline, "largest", too_large)
    prompts = [[5 + i, 6, 7] for i in range(6)]
    generations = complete(make_engine(tiny_model("llama"), max_batch_rows=6), prompts)
    assert tokens(generations) == greedy(tiny_model("llama"), prompts, MAX_NEW_TOKENS)


def test_what_the_model_says_after_a_rows_end_does_not_count(tiny_model: Callable[..., Path]) -> None:
    """A regression: a finished row goes on reading padding while its batch lasts, and an overflow there made it an
    error row.
    """
    first_token = complete(make_engine(tiny_model("llama")), [[5, 6, 7]])[0].token_ids[0]
    engine = make_engine(tiny_model("llama"), first_token)
    forward = module_of(engine).forward
    pad_token_id = engine._tasks[Generate]._model.pad_token_id  # type: ignore[attr-defined]

    def poisoned(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        output = forward(input_ids=input_ids, **kwargs)
        if input_ids.shape[1] == 1:  # decoding: row 1 has ended by then
            output.logits[(input_ids[:, 0] == pad_token_id)] = torch.nan
        return output

    module_of(engine).forward = poisoned
    generations = complete(engine, [[9, 8, 7], [5, 6, 7]])
    assert [g.error for g in generations] == [None, None]
    assert list(generations[1].token_ids) == [first_token]
    assert len(generations[0].token_ids) > 1


def test_a_stop_keeps_the_rows_that_have_ended(tiny_model: Callable[..., Path]) -> None:
    """A regression: time slots shorter than a batch made no progress at all."""
    first_token = complete(make_engine(tiny_model("llama")), [[5, 6, 7]])[0].token_ids[0]
    asked: list[int] = []
    engine = make_engine(tiny_model("llama"), first_token, should_stop=lambda: len(asked) >= 4 or bool(asked.append(1)))
    for row_idx, prompt in enumerate([[9, 8, 7], [5, 6, 7]]):
        engine.submit(ask(prompt, row_idx=row_idx))
    (ended,) = engine.step()
    assert (ended.request.row_idx, list(ended.token_ids), ended.finish_reason) == (1, [first_token], "stop")
    assert engine.num_pending == 1


def test_non_finite_logits_are_an_error_of_that_row_alone(tiny_model: Callable[..., Path]) -> None:
    """float16 overflows on some models and some rows."""
    engine = make_engine(tiny_model("llama"))
    forward = module_of(engine).forward

    def poisoned(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        output = forward(input_ids=input_ids, **kwargs)
        output.logits[(input_ids == 99).any(dim=-1)] = torch.nan
        return output

    module_of(engine).forward = poisoned
    prompts = [[5, 6, 7], [99, 6, 7], [8, 6, 7]]
    generations = complete(engine, prompts)
    assert str(generations[1].error).startswith("non_finite_logits")
    assert [list(generations[i].token_ids) for i in (0, 2)] == greedy(
        tiny_model("llama"), [prompts[0], prompts[2]], MAX_NEW_TOKENS
    )


@pytest.mark.parametrize("checkpoint_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bfloat16_keeps_the_rotary_frequencies_in_fp32(
    tiny_model: Callable[..., Path], checkpoint_dtype: torch.dtype
) -> None:
    """DeepSpeed casts buffers with the weights; bf16 frequencies changed 1.6 % of a model's tokens.

    A float16 checkpoint is cast before DeepSpeed sees it on most CPUs, which once lost the frequencies as well.
    """
    model, _ = load(tiny_model("llama", dtype=checkpoint_dtype), "bfloat16")
    buffers = dict(model.module.named_buffers())
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for name, buffer in buffers.items() if "inv_freq" in name} == {torch.float32}
    assert any("inv_freq" in name for name in buffers)


def test_anonymous_memory_grows_by_less_than_a_fifth_of_the_weights(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """safetensors stay mapped while the dtype is the checkpoint's: the page cache holds them once for all ranks."""
    model_dir = tiny_model(
        "llama", hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, dtype=torch.bfloat16, vocab_size=8192
    )
    code = f"""
import torch, transformers
from pathlib import Path
from job.config import ModelConfig
from job.launch.replica import Replica
from job.remote.model_files import ModelFiles
from job.engine.model.deepspeed_setup import import_deepspeed
from job.engine.model.loading import load_model
from job.engine.model.info import inspect_model
from job.launch.environment import read_process_info
import_deepspeed()
from transformers import AutoModelForCausalLM, LlamaForCausalLM
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024
replica = Replica(read_process_info({{}}, 1))
config = ModelConfig(model={str(model_dir)!r}, dtype="bfloat16")
info = inspect_model(config, ModelFiles(name=config.model), replica.device, 1)
before = anonymous()
model = load_model(config, info, replica, [])
grown = anonymous() - before
print(grown, sum(p.numel() * p.element_size() for p in model.module.parameters()))
"""
    (result,) = finish(start_processes(["-c", code]))
    assert result.exit_code == 0, result.stderr
    grown, weights = map(int, result.stdout.split())
    assert weights > 100e6
    assert grown < 0.2 * weights


def test_a_model_that_is_too_large_is_told_in_a_line(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loading, "shard", lack)
    with pytest.raises(
        JobError, match=r"does not fit into the memory of cpu: CUDA out of memory.*tensor-parallel-size"
    ):
        load(tiny_model("llama"))


@pytest.mark.parametrize(
    ("wanted", "cuda", "cpu"),
    [("auto", "float16", "bfloat16"), ("float16", "float16", "bfloat16"), ("float32", "float32", "float32")],
)
def test_dtype_follows_the_device(monkeypatch: pytest.MonkeyPatch, wanted: str, cuda: str, cpu: str) -> None:
    """float16 on CUDA; where it cannot be computed, bfloat16 or float32 with a remark."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert resolve_dtype(wanted, torch.device("cuda")) == (cuda, None)
    dtype, note = resolve_dtype(wanted, torch.device("cpu"))
    assert dtype == cpu
    assert (note is None) == (wanted == "float32")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    assert resolve_dtype("auto", torch.device("cpu"))[0] == "float32"


def config_of(model_type: str, **values: Any) -> Any:
    """Return a transformers configuration."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **values)


def test_architectures_that_cannot_be_cut_are_refused_only_above_one_process() -> None:
    """The message says what does work."""
    for model_type in ("gpt2", "dbrx", "mamba", "bert"):
        check_tensor_parallel(config_of(model_type), 1)
        with pytest.raises(UsageError, match=rf"'{model_type}' cannot run .* Use --tensor-parallel-size 1"):
            check_tensor_parallel(config_of(model_type), 2)
    check_tensor_parallel(config_of("falcon", new_decoder_architecture=True, num_kv_heads=8), 2)


def test_more_processes_than_heads_are_refused() -> None:
    """A rank without a head would hold nothing of the attention."""
    config = config_of("llama", hidden_size=576, num_attention_heads=9, num_key_value_heads=3)
    check_tensor_parallel(config, 3)
    with pytest.raises(UsageError, match=r"has 3 key-value heads, .* Use 3 or less"):
        check_tensor_parallel(config, 4)
    check_tensor_parallel(config_of("codegen", n_head=16), 4)
    with pytest.raises(UsageError, match=r"16 heads in 4 blocks, .* Use a divisor of 4"):
        check_tensor_parallel(config_of("codegen", n_head=16), 8)
