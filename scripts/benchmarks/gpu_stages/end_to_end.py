"""``job run`` from JSON lines to Parquet on a model of real shape: once undisturbed, once killed and resumed."""

import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.tiny import make_tokenizer

from . import processes
from .figures import save
from .models import make_model


def main(*, shape: str, rows: int, rows_per_shard: int, num_new: int, options: list[str]) -> None:
    """Complete ``rows`` rows twice.

    Args:
        options: of ``job run``.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _make_inputs(directory, shape, rows)
        command = ["run", "--model", str(directory / "model"), "--dataset", str(directory / "rows.jsonl")]
        command += ["--prompt-column", "question", "--no-chat", "--ignore-eos", "--max-new-tokens", str(num_new)]
        command += ["--rows-per-shard", str(rows_per_shard), *options]
        whole, resumed = directory / "whole", directory / "resumed"
        secs = _run(directory, [*command, "--output", str(whole)])
        save(
            f"{shape}, {rows} rows + {num_new} tokens, undisturbed",
            secs=secs,
            rows_per_s=rows / secs,
            **_check(directory, whole, rows),
        )
        kept = _run_until_killed(directory, [*command, "--output", str(resumed)], resumed)
        secs = _run(directory, [*command, "--output", str(resumed)])
        found = _check(directory, resumed, rows)
        same = _completions(whole) == _completions(resumed)
        save(f"{shape}, killed and resumed", parts_at_kill=kept, secs=secs, equal_to_undisturbed=same, **found)


def _make_inputs(directory: Path, shape: str, rows: int) -> None:
    model = make_model(shape)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(directory / "model")
    make_tokenizer().save_pretrained(directory / "model")  # knows bytes; other ids decode to nothing
    with (directory / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in range(rows):
            file.write(json.dumps({"id": row, "question": f"Question {row}: " + "what is it? " * (2 + row % 9)}) + "\n")


def _prepare(directory: Path, command: list[str]) -> processes.Child:
    values = {"command": command}
    return processes.prepare("gpu_stages.end_to_end", "job", values, log=directory / "log", env={}, leads_group=False)


def job(*, command: list[str]) -> None:
    """Run the command line in this process."""
    from job.cli import program

    sys.argv = ["job", *command]
    program()


def _run(directory: Path, command: list[str]) -> float:
    """Run a command, and return the seconds that its process took."""
    begin = time.perf_counter()
    child = _prepare(directory, command)
    child.finish()
    _expect(child.process.exitcode == 0, directory)
    return time.perf_counter() - begin


def _run_until_killed(directory: Path, command: list[str], output: Path) -> int:
    """Kill a run once its first part is finished, and return how many parts it had."""
    child = _prepare(directory, command)
    child.may_begin.set()
    while child.process.is_alive() and not any(output.glob("data/part-*.parquet")):
        time.sleep(0.005)
    child.process.kill()
    child.process.join()
    _expect(child.process.exitcode == -signal.SIGKILL, directory)
    return len(list(output.glob("data/part-*.parquet")))


def _expect(is_well: bool, directory: Path) -> None:
    print((directory / "log").read_text(encoding="utf-8"), flush=True)
    (directory / "log").write_text("")
    assert is_well, "job run ended otherwise than expected"


def _check(directory: Path, output: Path, rows: int) -> dict[str, Any]:
    """Let ``job verify`` look at a run, and count what is in it."""
    _run(directory, ["verify", str(output)])
    table = pq.read_table(output / "data")
    errors = sum(error is not None for error in table.column("error").to_pylist())
    found = sorted(table.column("row_idx").to_pylist())
    assert found == list(range(rows)), "a row is missing or doubled"
    return {"rows": len(found), "error_rows": errors}


def _completions(output: Path) -> list[str]:
    table = pq.read_table(output / "data").sort_by("row_idx")
    return table.column("completion").to_pylist()
