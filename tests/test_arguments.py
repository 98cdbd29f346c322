"""The command line as such: what no option of any command may be."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from job.cli import foreign, main
from tests.conftest import Result

RunJob = Callable[..., Result]

BYTES = os.fsdecode(b"caf\xe9")
"""As Python hands on an argument in Latin-1."""

RUN = ("run", "--model", "m", "--dataset", "d.jsonl", "--output", "o")


@pytest.mark.parametrize(
    ("args", "where"),
    [
        ([*RUN, "--stop", BYTES], " after --stop"),
        ([*RUN, "--prompt-template", "{{ x }}" + BYTES], " after --prompt-template"),
        ([*RUN, "--system-prompt", BYTES], " after --system-prompt"),
        ([*RUN, "--choices", "a", "--choices", BYTES], " after --choices"),
        ([*RUN[:3], "--dataset", BYTES, *RUN[5:]], " after --dataset"),
        (["preview", *RUN[1:], "--regex", BYTES], " after --regex"),
        (["verify", BYTES], ""),
    ],
    ids=str,
)
def test_arguments_that_are_no_text_are_refused(run_job: RunJob, args: Sequence[str], where: str) -> None:
    """It was a UnicodeEncodeError with a traceback, at another place for each option."""
    result = run_job(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"job: The argument{where} is not UTF-8 text: b'") and r"caf\xe9" in line


def test_a_locale_that_cannot_read_an_argument_is_named(run_job: RunJob) -> None:
    """Its bytes are UTF-8, but were said not to be: Python had been told to read them as ASCII."""
    result = run_job("status", os.fsdecode("Größe".encode("latin-1")), "caf\udcc3\udca9")
    assert result.exit_code == 2 and "is not UTF-8 text: b'Gr\\xf6\\xdfe'" in result.stderr
    result = run_job("run", "--output", "caf\udcc3\udca9")
    assert result.exit_code == 2
    assert "job: The argument after --output, café, cannot be read in this locale (" in result.stderr


def test_bytes_of_a_shell_are_refused() -> None:
    args = [sys.executable, "-m", "job", "status", b"o\xff"]
    result = subprocess.run(args, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "job: The argument is not UTF-8 text: b'o\\xff'.\n"


@pytest.mark.parametrize(
    ("args", "option"), [(["export", "o", "--columns", ""], "--columns"), (["retry", "o", "--kind", " ,"], "--kind")]
)
def test_lists_that_name_nothing_are_refused(run_job: RunJob, args: Sequence[str], option: str) -> None:
    """``--columns ''`` exported all columns, as ``--kind ''`` would have marked all rows."""
    result: Any = run_job(*args)
    assert result.exit_code == 2
    assert option in result.stderr and "contains no name. Give one, or leave the option out." in result.stderr


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("--tp", "Use --tensor-parallel-size."),
        ("--tensor-parallel", "Use --tensor-parallel-size."),
        ("--max_tokens", "Use --max-new-tokens."),
        ("--gpu-memory-utilization", "Use --kv-cache-memory."),
        ("--batch-size", "Use --max-batch-rows."),
        ("--max-num-seqs", "Use --max-batch-rows."),
        ("--max-num-batched-tokens", "Use --max-batch-tokens."),
        ("--model-id", "Use --model."),
        ("--limit-rows", "Use --limit."),
        ("--apply-chat-template", "Use --chat."),
        ("--num-fewshot", "Use --examples."),
        ("--n", "Use --num-samples."),
        ("-n", "Use --num-samples."),
        ("--max_new_tokens", "Write --max-new-tokens."),
        ("--delimiter", "Use --csv-delimiter."),
        ("--dry-run", "Use job preview: it takes the same options, and computes nothing."),
        ("--cpu", "Use --device."),
        ("--best-of", "Use --num-samples."),
        ("--enforce-eager", "Use --no-cuda-graphs."),
        ("--device-map", "DeepSpeed places the model, one process per GPU. Use --tensor-parallel-size."),
    ],
)
def test_options_of_other_tools_are_named_as_they_are_called_here(run_job: RunJob, option: str, advice: str) -> None:
    """Spelling alone proposed ``--stop`` for ``--tp``, and nothing for ``--gpu-memory-utilization``."""
    for command in ("run", "preview"):
        result = run_job(command, *RUN[1:], option, "2")
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"job: No such option {option!r}. {advice}\n"


@pytest.mark.parametrize(
    "option",
    ["--quantization", "--load-in-8bit", "--tasks", "--dp", "--gpus", "--shuffle", "--lora-path"],
)
def test_what_other_tools_can_do_and_this_one_cannot_has_a_reason(run_job: RunJob, option: str) -> None:
    result = run_job(*RUN, option, "x")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"job: No such option {option!r}. ") and "Did you mean" not in result.stderr


def test_advice_on_foreign_options_names_options_that_exist() -> None:
    """And none of our own options is taken for a foreign one."""
    own = {name for command in main.commands.values() for name in names_of(command)}
    named = {name for advice in foreign._ADVICE.values() for name in re.findall(r"--[a-z-]+", advice)}
    assert named - own == set()
    assert {f"--{name}" for name in foreign._ADVICE} & names_of(main.commands["run"]) == set()


def names_of(command: click.Command) -> set[str]:
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize(("value", "ours"), [("half", "float16"), ("fp16", "float16"), ("torch.bfloat16", "bfloat16")])
def test_other_names_of_a_precision_are_explained(run_job: RunJob, value: str, ours: str) -> None:
    result = run_job(*RUN, "--dtype", value)
    assert result.exit_code == 2
    assert f"{value!r} is not one of 'auto', 'float16', 'bfloat16', 'float32'. Write {ours!r}." in result.stderr


def test_a_home_directory_is_found_behind_an_equals_sign(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run_job("run", "--model=~/m", "--dataset=~/d.jsonl", "--output=~/o")
    assert result.exit_code == 2
    assert f"{tmp_path}/m" in result.stderr


def test_names_that_the_terminal_cannot_show_are_escaped(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """It was a UnicodeEncodeError, after all rows were done."""
    data, output = tmp_path / "d.jsonl", tmp_path / "\u6771\u00e9"
    data.write_text('{"prompt": "x"}\n')

    def run(encoding: str, *args: Any) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        command = [sys.executable, "-m", "job", *map(str, args)]
        return subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[1], check=False, env=env)

    done = run("ascii", "run", "--engine", "fake", "--model", tiny_model(), "--dataset", data, "--output", output)
    assert (done.returncode, output.name.encode("ascii", "backslashreplace") in done.stdout) == (0, True), done.stderr
    for command in ("status", "verify"):
        seen = run("latin-1", command, output)
        assert seen.returncode == 0 and b"\\u6771\xe9" in seen.stdout, seen


def test_a_repeated_option_with_one_value_is_noted(run_job: RunJob, tmp_path: Path) -> None:
    """Two ``--dataset`` read the second in silence. Scripts add the user's options to their own, so it is allowed."""
    args = [
        "preview",
        "--model",
        tmp_path,
        "--dataset",
        "a.jsonl",
        "--dataset",
        "b.jsonl",
        "--stop",
        "x",
        "--stop",
        "y",
    ]
    result = run_job(*args)
    assert "--dataset was given 2 times; the last one counts: b.jsonl\n" in result.stderr
    assert "--stop" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stop-token-ids", "2,3"), "'2,3' is not one id. Write --stop-token-ids 2 --stop-token-ids 3."),
        (
            ("--stop-token-ids", "</s>"),
            "'</s>' is not the id of a token, which is a whole number. For a text, use --stop.",
        ),
        (
            ("--logit-bias", '{"a": NaN}'),
            "cannot be written as JSON: it has NaN or an infinite number, which JSON does not",
        ),
        (("--logit-bias", '{"a": 1e999}'), "it has NaN or an infinite number"),
    ],
)
def test_what_was_meant_otherwise_is_said(run_job: RunJob, options: Sequence[str], message: str) -> None:
    result = run_job(*RUN, *options)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--json-schema", "--grammar"])
def test_an_empty_file_is_called_so(run_job: RunJob, tmp_path: Path, option: str) -> None:
    (tmp_path / "empty").write_text("\n")
    result = run_job(*RUN, option, tmp_path / "empty")
    assert result.exit_code == 2 and f"{option} '{tmp_path}/empty' is an empty file. Write a " in result.stderr


def test_values_without_their_option_say_how_to_give_several(run_job: RunJob) -> None:
    """``--keep-columns a b`` was "Got unexpected extra argument (b) See job run --help."."""
    result = run_job(*RUN, "--keep-columns", "a", "b")
    assert result.exit_code == 2
    assert "extra argument (b). An option takes a single value, in quotes if it has spaces; repeat" in result.stderr


@pytest.mark.parametrize("command", [("launch", "--processes", 2), ("submit", "--dry-run")])
def test_a_launch_of_run_says_to_leave_that_out(run_job: RunJob, command: tuple[Any, ...]) -> None:
    """Only "chain" is named after these commands. "run" was called an extra argument."""
    result = run_job(*command, *RUN)
    assert result.exit_code == 2 and "options of job run directly: leave out 'run'." in result.stderr
