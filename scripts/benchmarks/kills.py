"""Kill a run at random moments, again and again: is the table that of an undisturbed run, and what was done twice?

Usage: scripts/bench kills [NUM_KILLS] [MODEL] [MAX_NEW_TOKENS] [JOB OPTIONS...]

Each life of the run is a process that is killed by SIGKILL 0.2 to 8 seconds after it has begun to generate, but never
after it has ended. Tokens are counted as they are chosen; those of all lives, minus those of the finished table, were
chosen twice. The table is compared with that of a run without kills, in float32.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _workload import MODEL, ROOT

NUM_ROWS, SHORTEST_SECS, LONGEST_SECS = 64, 0.2, 8.0
QUESTIONS = ROOT / "scripts/demo-data/gsm8k-200.jsonl"

fork = multiprocessing.get_context("fork")


def live(args: Sequence[str], num_tokens: Any, log: Path) -> None:
    """Run the job in this process, and count the tokens that it chooses."""
    from job.cli import main
    from job.engine.paged.tasks.decoding import Decoding

    append = Decoding._append

    def counted(self: Decoding, row: Any, *rest: Any) -> Any:
        before = len(row.token_ids)
        end = append(self, row, *rest)
        num_tokens.value += len(row.token_ids) - before
        return end

    Decoding._append = counted  # type: ignore[method-assign]
    with log.open("a", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        main(list(args), prog_name="job")


def start(args: Sequence[str], log: Path) -> tuple[Any, Any]:
    """Start a life; return its process, and the number of tokens that it has chosen."""
    num_tokens = fork.Value("q", 0)
    process = fork.Process(target=live, args=(args, num_tokens, log))
    process.start()
    return process, num_tokens


def finish(args: Sequence[str], log: Path, rng: random.Random, num_kills: int) -> tuple[int, int, float]:
    """Kill lives of a run, and let the last one end.

    Returns:
        The kills that hit a life, the tokens chosen by all lives, and the seconds in which lives chose tokens.
    """
    total, hits, secs = 0, 0, 0.0
    for kill in range(num_kills + 1):
        process, num_tokens = start(args, log)
        while process.is_alive() and num_tokens.value == 0:
            time.sleep(0.01)
        begin = time.monotonic()
        if kill < num_kills:
            process.join(rng.uniform(SHORTEST_SECS, LONGEST_SECS))
            with contextlib.suppress(ProcessLookupError):
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
        process.join()
        secs += time.monotonic() - begin
        total += num_tokens.value
        hits += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            return hits, total, secs
        if process.exitcode != -signal.SIGKILL:
            raise SystemExit(log.read_text(encoding="utf-8")[-2000:])
    raise AssertionError("the last life is never killed")


def table(output: Path) -> Any:
    """Return the finished rows."""
    import pyarrow.parquet as pq

    return pq.read_table(output / "data").to_pylist()


def main() -> None:
    """Run until there were so many kills: several runs, if one ends before."""
    num_kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    model = sys.argv[2] if len(sys.argv) > 2 else str(MODEL)
    most = sys.argv[3] if len(sys.argv) > 3 else "300"
    scratch = Path(tempfile.mkdtemp(prefix="kills-"))
    data, log, rng = scratch / "questions.jsonl", scratch / "log", random.Random(0)
    data.write_text("".join(QUESTIONS.open(encoding="utf-8").readlines()[:NUM_ROWS]), encoding="utf-8")
    asked = [
        *["run", "--model", model, "--dataset", str(data), "--prompt-column", "question", "--dtype", "float32"],
        *["--max-new-tokens", most, "--temperature", "0.8", "--rows-per-shard", "16", "--lease-timeout", "15"],
        *["--include-prompt", "--no-show-rows", *sys.argv[4:]],
    ]
    import transformers  # noqa: F401 (so that the lives need not import them)

    import job.run.runner  # noqa: F401

    _, expected_tokens, expected_secs = finish([*asked, "--output", str(scratch / "undisturbed")], log, rng, 0)
    expected, rate = table(scratch / "undisturbed"), expected_tokens / expected_secs
    print(f"undisturbed: {len(expected)} rows, {expected_tokens:,} tokens, {rate:,.0f} tokens/s", flush=True)
    num, kills, twice, differing = 0, 0, 0, 0
    while kills < num_kills:
        num += 1
        output = scratch / f"killed-{num}"
        hits, tokens, _ = finish([*asked, "--output", str(output)], log, rng, num_kills - kills)
        kills, twice = kills + hits, twice + tokens - expected_tokens
        differing += sum(left != right for left, right in zip(table(output), expected, strict=True))
        print(f"run {num}: {hits} kills, {tokens - expected_tokens:,} tokens chosen twice", flush=True)
    print(f"{num} runs, {kills} kills: {differing} of {num * len(expected)} rows differ")
    print(f"chosen twice a kill: {twice / kills:,.0f} tokens, {twice / kills / rate:.2f} s of work")


if __name__ == "__main__":
    main()
