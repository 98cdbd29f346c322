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

from .figures import save
from .models import make_model
from .processes import Child, prepare


def main(*, shape: str, rows: int, rows_per_shard: int, num_new: int, options: list[str]) -> None:
    """Complete ``rows`` rows twice.

    Args:
        options: of ``job run``.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        command = ["run", "--model", str(directory / "model"), "--dataset", str(directory / "rows.jsonl")]
        command += ["--prompt-column", "question", "--no-chat", "--ignore-eos", "--max-new-tokens", str(num_new)]
        command += ["--rows-per-shard", str(rows_per_shard), *options]
        whole, resumed = directory / "whole", directory / "resumed"
        # All at once, since each needs seconds for its imports.
        children = {
            "whole": _prepare(directory, [*command, "--output", str(whole)]),
            "killed": _prepare(directory, [*command, "--output", str(resumed)]),
            "resumed": _prepare(directory, [*command, "--output", str(resumed)]),
            "verify whole": _prepare(directory, ["verify", str(whole)]),
            "verify resumed": _prepare(directory, ["verify", str(resumed)]),
        }
        _make_inputs(directory, shape, rows)
        secs = _finish(children["whole"], directory)
        _finish(children["verify whole"], directory)
        save(
            f"{shape}, {rows} rows + {num_new} tokens, undisturbed",
            secs=secs,
            rows_per_s=rows / secs,
            **_contents(whole, rows),
        )
        num_parts = _kill_after_a_part(children["killed"], directory, resumed)
        secs = _finish(children["resumed"], directory)
        _finish(children["verify resumed"], directory)
        save(
            f"{shape}, killed and resumed",
            parts_at_kill=num_parts,
            secs=secs,
            equal_to_undisturbed=_completions(whole) == _completions(resumed),
            **_contents(resumed, rows),
        )


def _make_inputs(directory: Path, shape: str, rows: int) -> None:
    model = make_model(shape)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(directory / "model")
    make_tokenizer().save_pretrained(directory / "model")  # knows bytes; other ids decode to nothing
    with (directory / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in range(rows):
            file.write(json.dumps({"id": row, "question": f"Question {row}: " + "what is it? " * (2 + row % 9)}) + "\n")


def _prepare(directory: Path, command: list[str]) -> Child:
    values = {"command": command}
    return prepare("gpu_stages.end_to_end", "job", values, log=directory / "log", env={}, leads_group=False)


def job(*, command: list[str]) -> None:
    """Run the command line in this process."""
    from job.cli import program

    sys.argv = ["job", *command]
    program()


def _finish(child: Child, directory: Path) -> float:
    """Let a command run, and return the seconds that it took, most of its imports left out."""
    begin = time.perf_counter()
    child.finish()
    _expect(child.process.exitcode == 0, directory)
    return time.perf_counter() - begin


def _kill_after_a_part(child: Child, directory: Path, output: Path) -> int:
    """Kill a run once its first part is finished, and return how many parts it had."""
    child.may_begin.set()
    while child.process.is_alive() and not any(output.glob("data/part-*.parquet")):
        time.sleep(0.005)
    child.process.kill()
    child.process.join()
    _expect(child.process.exitcode == -signal.SIGKILL, directory)
    return len(list(output.glob("data/part-*.parquet")))


def _expect(is_well: bool, directory: Path) -> None:
    print((directory / "log").read_text(encoding="utf-8"), flush=True)
    (directory / "log").write_text("", encoding="utf-8")
    assert is_well, "job run ended otherwise than expected"


def _contents(output: Path, rows: int) -> dict[str, Any]:
    """Count what is in a run."""
    table = pq.read_table(output / "data")
    assert sorted(table.column("row_idx").to_pylist()) == list(range(rows)), "a row is missing or doubled"
    return {"rows": table.num_rows, "error_rows": table.num_rows - table.column("error").null_count}


def _completions(output: Path) -> list[str]:
    table = pq.read_table(output / "data").sort_by("row_idx")
    return table.column("completion").to_pylist()
