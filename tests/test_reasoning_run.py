"""``job run`` with reasoning: whose markers are found, what the columns hold, what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.config import DataConfig, ModelConfig, OutputConfig, PromptConfig, RunConfig, SamplingConfig
from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.modes.bound import BoundModes
from job.modes.mode import Setting
from job.modes.reasoning import ReasoningMode
from job.records import Completion, Generation, Request
from tests.conftest import Result
from tests.test_run import read_output, write_jsonl
from tests.tiny import make_chat_tokenizer

RunJob = Callable[..., Result]

HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>"


def config(mode: ReasoningMode, **sampling: Any) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model="m"),
        data=DataConfig(dataset="d"),
        prompt=PromptConfig(),
        sampling=SamplingConfig(**sampling),
        output=OutputConfig(output="o"),
        modes=(mode,),
    )


def settled(template: str, **options: Any) -> tuple[ReasoningMode, Tokenizer]:
    inner = make_chat_tokenizer(template)
    mode, tokenizer = ReasoningMode(**options), Tokenizer(inner)
    return mode.settled(config(mode), tokenizer, str(inner.chat_template), None), tokenizer


def split(template: str, prompt: str, text: str, finish_reason: str = "stop", **options: Any) -> Completion:
    """Return the output row of a completion with special tokens."""
    mode, tokenizer = settled(template, **options)
    wanted = config(mode, stop=("STOP", "\n\n"))
    setting = Setting(
        tokens=tokenizer, sampling=wanted.sampling, prompt_suffix="", before_answer=wanted.active_modes[0].before_answer
    )
    modes = BoundModes.of(wanted, setting)
    request = Request(row_idx=0, sample_idx=0, prompt_ids=tokenizer.encode(prompt), task=modes.task)
    generation = Generation(request=request, token_ids=tokenizer.encode(text), finish_reason=finish_reason)
    [completion] = modes.complete([generation], tokenizer.decode([generation.token_ids]), [None])
    return completion


@pytest.mark.parametrize(
    ("template", "prompt", "text", "reasoning", "answer"),
    [
        ("qwen3", "assistant\n", "<think>\nHm.\n</think>\n\n4 <|im_end|>", "Hm.", "4 "),
        ("qwen3", "assistant\n", "<think>Hm.</think>\n\n4\n\n5", "Hm.", "4"),
        ("qwen3", "assistant\n", "\n\n4\n\n5", None, "\n\n4"),
        ("qwen3", "assistant\n", "4<|im_end|>", None, "4"),
        ("qwen3", "<think>\n\n</think>\n\n", "4 </think>", None, "4 </think>"),
        ("qwen3", "assistant\n", "<think>\n\n</think>4", "", "4"),
        ("deepseek_r1", "<|Assistant|><think>\n", "So: </think> is</think>\n4", "So:", "is</think>\n4"),
        ("deepseek_r1", "<think><|Assistant|>", "4", None, "4"),
        ("deepseek_r1", "<think>\n", "STOP it", "STOP it", ""),
        ("deepseek_r1", "<think>\n", "STOP</think>4 STOP 5", "STOP", "4 "),
        ("gpt_oss", "<|start|>assistant", HARMONY.format("Hm.", "4"), "Hm.", "4"),
        ("gpt_oss", "<|start|>assistant", "<|channel|>final<|message|>4<|return|>", None, "4"),
        ("gpt_oss", "<|start|>assistant", "<|channel|>analysis<|message|>Hm", "Hm", ""),
    ],
)
def test_a_completion_is_split_as_its_model_writes_it(
    template: str, prompt: str, text: str, reasoning: str | None, answer: str
) -> None:
    """The first marker counts, wherever the answer quotes one; stop strings count in the answer alone, and white space
    before that does not."""
    found = split(template, prompt, text)
    assert (found.values["reasoning"], found.completion) == (reasoning, answer)
    assert found.num_completion_tokens >= found.values["num_reasoning_tokens"]
    assert (found.values["num_reasoning_tokens"] > 0) == (
        reasoning is not None and "\n\n</" not in text
    ) or not reasoning
    assert "reasoning_cut" not in found.values


def test_the_budget_of_a_channel_forces_all_that_comes_between() -> None:
    found = split("gpt_oss", "<|start|>assistant", HARMONY.format("Hm.", "4"), max_reasoning_tokens=3)
    assert found.values == {"reasoning": "Hm.", "num_reasoning_tokens": 3, "reasoning_cut": True}
    found = split("gpt_oss", "<|start|>assistant", HARMONY.format("Hm", "4"), max_reasoning_tokens=3)
    assert found.values == {"reasoning": "Hm", "num_reasoning_tokens": 2, "reasoning_cut": False}


@pytest.mark.parametrize(
    ("template", "options", "markers"),
    [
        ("qwen3", {}, "<think>,</think>"),
        ("llama3", {}, None),
        ("llama3", {"max_reasoning_tokens": 3}, "<think>,</think>"),
        ("gpt_oss", {}, "<|channel|>analysis<|message|>,<|channel|>final<|message|>"),
        ("qwen3", {"reasoning": False}, None),
        ("qwen3", {"reasoning_markers": "<plan>,</plan>"}, "<plan>,</plan>"),
    ],
)
def test_markers_are_found_in_the_tokenizer_and_the_template(
    template: str, options: dict[str, Any], markers: str | None
) -> None:
    """Without being asked, only those that the template mentions: many tokenizers have tokens that are never used."""
    mode, _ = settled(template, **options)
    assert mode.reasoning_markers == markers and mode.is_asked == (markers is not None)


@pytest.fixture
def start(run_job: RunJob, r1: Path, tmp_path: Path) -> Callable[..., Result]:
    """Return a function that runs a model whose prompts begin the reasoning."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"question {i}?"} for i in range(4)])

    def run(*options: object, command: str = "run", model: Path = r1) -> Result:
        common = ("--model", model, "--dataset", data, "--output", tmp_path / "out", "--dtype", "float32")
        return run_job(command, *common, *options)

    return run


def test_an_answer_follows_its_reasoning(start: Callable[..., Result], run_job: RunJob, tmp_path: Path) -> None:
    options = ("--max-reasoning-tokens", 5, "--regex", "(yes|no)!", "--max-new-tokens", 12)
    result = start(*options)
    assert result.exit_code == 0, result.stderr
    assert "what the model writes from <think> to </think> goes to the column reasoning" in result.stderr
    assert "4 of 4 completions, 4 cut at --max-reasoning-tokens 5" in result.stdout
    rows = read_output(tmp_path / "out").to_pylist()
    assert {row["completion"] for row in rows} <= {"yes!", "no!"}
    assert {(row["num_reasoning_tokens"], row["reasoning_cut"], row["parse_ok"]) for row in rows} == {(5, True, True)}
    assert all(row["num_completion_tokens"] >= 5 + 1 + len(row["completion"]) for row in rows)
    assert run_job("verify", tmp_path / "out").exit_code == 0
    assert "already done" in start(*options).stderr
    other = start(*options, "--max-reasoning-tokens", 6)
    assert other.exit_code == 2 and "--max-reasoning-tokens was 5, now 6" in other.stderr


def test_what_never_became_an_answer_is_empty(start: Callable[..., Result], tmp_path: Path) -> None:
    assert start("--max-new-tokens", 6).exit_code == 0
    rows = read_output(tmp_path / "out").to_pylist()
    assert {(row["completion"], row["finish_reason"]) for row in rows} == {("", "length")}
    assert all(row["num_reasoning_tokens"] == row["num_completion_tokens"] == 6 for row in rows)


def test_a_run_that_began_without_reasoning_goes_on_without(start: Callable[..., Result], tmp_path: Path) -> None:
    """As runs of versions that did not know it do."""
    assert start("--no-reasoning", "--max-new-tokens", 6).exit_code == 0
    again = start("--max-new-tokens", 6)
    assert again.exit_code == 0 and "already done" in again.stderr
    assert "reasoning" not in read_output(tmp_path / "out").schema.names
    asked = start("--reasoning", "--max-new-tokens", 6)
    assert asked.exit_code == 2 and "reasoning" in asked.stderr


def test_the_majority_votes_on_answers(start: Callable[..., Result], tmp_path: Path) -> None:
    options = (
        "--max-error-rate",
        1,
        "--num-samples",
        3,
        "--temperature",
        2.0,
        "--aggregate",
        "majority",
        "--regex",
        "(yes|no)!",
    )
    assert start("--max-reasoning-tokens", 4, "--max-new-tokens", 12, *options).exit_code == 0
    rows = read_output(tmp_path / "out").to_pylist()
    assert len({row["reasoning"] for row in rows}) > 6 and {row["majority"] for row in rows} == {"yes!", "no!"}


@pytest.mark.parametrize("options", [("--choices", "a", "--choices", "b"), ("--no-chat",), ("--no-reasoning",)])
def test_reasoning_is_left_alone(start: Callable[..., Result], options: tuple[str, ...]) -> None:
    assert "column reasoning" in start("--max-new-tokens", 6, command="preview").stdout
    assert "column reasoning" not in start("--max-new-tokens", 6, *options, command="preview").stdout


SHOTS = [{"prompt": "a?", "completion": "<think>\nso\n</think>\n\nb"}, {"prompt": "c?", "completion": "d"}]


@pytest.mark.parametrize(
    ("options", "prompt", "reasons"),
    [
        (
            (),
            "<bos><|User|>a?<|Assistant|>\n\nb<|end_of_sentence|><|User|>c?<|Assistant|>d<|end_of_sentence|>"
            "<|User|>question 0?<|Assistant|><think>\n",
            True,
        ),
        (
            ("--no-chat", "--prompt-template", "{{ prompt }} "),
            "a? <think>\nso\n</think>\n\nb\n\nc? d\n\nquestion 0? ",
            False,
        ),
        (
            ("--no-chat", "--prompt-template", "{{ prompt }} <think>"),
            "a? <think><think>\nso\n</think>\n\nb\n\nc? <think>d\n\nquestion 0? <think>",
            True,
        ),
    ],
)
def test_examples_come_before_the_reasoning(
    start: Callable[..., Result], tmp_path: Path, options: tuple[str, ...], prompt: str, reasons: bool
) -> None:
    """Thoughts of earlier turns are as the chat template has them. Markers in examples begin or end nothing."""
    shots = write_jsonl(tmp_path / "shots.jsonl", SHOTS)
    budget = ("--max-reasoning-tokens", 4, "--max-new-tokens", 8)
    result = start(*options, "--examples", shots, *budget, "--limit", 1)
    assert result.exit_code == 0, result.stderr
    [row] = read_output(tmp_path / "out").to_pylist()
    assert row["prompt"] == prompt and row["error"] is None
    assert (row["num_reasoning_tokens"], row["reasoning_cut"]) == ((4, True) if reasons else (0, False))


def test_a_prefill_that_leaves_no_room_for_reasoning_is_noted(start: Callable[..., Result]) -> None:
    """It was asked for, and no row had any."""
    note = "prompts end with the beginning of the answer, so the model does not reason before it; with <think> at the"
    for prefill, is_noted in (("Let us see", True), ("<think>\nLet us see", False), ("<think>\n\n</think>\n\n", True)):
        result = start("--max-reasoning-tokens", 5, "--prefill", prefill, command="preview")
        assert result.exit_code == 0 and (note in result.stdout + result.stderr) == is_noted, prefill


BAD = {
    "no answer": (["--max-reasoning-tokens", 6, "--max-new-tokens", 6], "leaves no token for the answer: --max-new"),
    "negative": (["--max-reasoning-tokens", -1], "--max-reasoning-tokens is -1; it must be 0 or more"),
    "one marker": (["--reasoning-markers", "<think>"], "it must be two different texts, such as <think>,</think>"),
    "equal": (["--reasoning-markers", "a,a"], "it must be two different texts"),
    "off": (["--no-reasoning", "--max-reasoning-tokens", 3], "--no-reasoning and --max-reasoning-tokens were given"),
    "scores": (["--reasoning", "--score-column", "prompt"], "--reasoning and --score-column were given together"),
}


@pytest.mark.parametrize(("options", "reason"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_refused(start: Callable[..., Result], options: list[Any], reason: str) -> None:
    result = start(*options)
    assert result.exit_code == 2 and reason in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_model_without_markers_is_refused_before_it_is_loaded(
    start: Callable[..., Result], tiny_model: Any, tmp_path: Path
) -> None:
    result = start("--max-reasoning-tokens", 5, model=tiny_model(chat=True))
    assert (
        result.exit_code == 2 and "--max-reasoning-tokens needs the markers of the model's reasoning" in result.stderr
    )
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_marker_that_joins_other_text_is_refused() -> None:
    class Joining(Tokenizer):
        def encode(self, text: str) -> list[int]:
            return [len(word) for word in re.findall(r"\n*[^\n]+\n*|\n+", text)]

    mode, tokenizer = settled("qwen3", reasoning_markers="<plan>,</plan>")
    wanted = config(mode)
    with pytest.raises(UsageError, match="'<plan>' is not one sequence of tokens: this tokenizer joins it"):
        mode.bind(Setting(tokens=Joining(tokenizer.inner), sampling=wanted.sampling, prompt_suffix=""))
