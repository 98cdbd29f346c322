"""What it costs to keep what rows in flight have so far: runs with and without it side by side, in CPU seconds.

Usage: scripts/bench in-flight [NUM_PAIRS] [MODEL] [FILE]. Needs two processors.

The two runs of a pair go at the same time, each on a processor of its own, and change places in the next pair: what
slows the machine for a while slows both. CPU seconds are those of all threads of a run from its first step to its end,
without loading. Within the runs that keep, the CPU seconds spent on keeping are counted, too: that is
exact, where the difference of two runs is blurred by what the machine does beside them. Pairs are appended to FILE, and
the intervals are over all pairs that it has.
"""

import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _workload import MODEL, QUESTIONS

NUM_ROWS, MAX_NEW_TOKENS = 192, 96

T_95 = {4: 2.78, 5: 2.57, 7: 2.36, 9: 2.26, 11: 2.2, 14: 2.14, 19: 2.09, 24: 2.06, 29: 2.05}
"""Quantiles of Student's distribution by degrees of freedom."""

fork = multiprocessing.get_context("fork")


def live(args: list[str], processor: int, results: Any, log: Path) -> None:
    """Run the job in this process, and send the CPU seconds since its first step, and those of keeping."""
    os.sched_setaffinity(0, {processor})
    from job.cli import main
    from job.run.in_flight import InFlight
    from job.run.runner import Runner

    begin: list[float] = []
    keeping, depth = [0.0], [0]

    def cpu_secs() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def counted(function: Any) -> Any:
        def run(*given: Any, **more: Any) -> Any:
            start, depth[0] = time.thread_time(), depth[0] + 1
            try:
                return function(*given, **more)
            finally:
                depth[0] -= 1
                if depth[0] == 0:
                    keeping[0] += time.thread_time() - start

        return run

    for name in ("look", "resumed", "end", "keep_if_due", "keep", "settle", "leave", "close"):
        setattr(InFlight, name, counted(getattr(InFlight, name)))
    collect = Runner._collect

    def begun(self: Runner) -> None:
        begin[:] = begin or [cpu_secs()]
        collect(self)

    Runner._collect = begun  # type: ignore[method-assign]
    with log.open("a", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        try:
            main(args, prog_name="job")
        finally:
            results.put((cpu_secs() - begin[0], keeping[0]))


def measure(ways: Mapping[str, list[str]], scratch: Path) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds of runs that go at the same time, and those of keeping."""
    started = {}
    for processor, (way, args) in zip(sorted(os.sched_getaffinity(0)), ways.items(), strict=False):
        results, log, output = fork.SimpleQueue(), scratch / f"{way}.log", scratch / way
        process = fork.Process(target=live, args=([*args, "--output", str(output)], processor, results, log))
        process.start()
        started[way] = process, results
    for way, (process, _) in started.items():
        process.join()
        if process.exitcode != 0:
            raise SystemExit((scratch / f"{way}.log").read_text(encoding="utf-8")[-2000:])
        shutil.rmtree(scratch / way)
    return {way: results.get() for way, (_, results) in started.items()}


def mean_and_margin(values: list[float]) -> str:
    """Return a mean with its 95 % interval, in percent."""
    freedom = len(values) - 1
    if freedom == 0:
        return f"{100 * values[0]:+.2f} %"
    t = T_95[max(known for known in T_95 if known <= freedom)] if freedom >= min(T_95) else 12.7
    margin = t * statistics.stdev(values) / len(values) ** 0.5
    return f"{100 * statistics.mean(values):+.2f} % ± {100 * margin:.2f} %"


def main() -> None:
    """Run pairs, and print what keeping costs."""
    num_pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    model = sys.argv[2] if len(sys.argv) > 2 else str(MODEL)
    scratch = Path(tempfile.mkdtemp(prefix="in-flight-"))
    file = Path(sys.argv[3]) if len(sys.argv) > 3 else scratch / "pairs.jsonl"
    data = scratch / "questions.jsonl"
    data.write_text("".join(QUESTIONS.open(encoding="utf-8").readlines()[:NUM_ROWS]), encoding="utf-8")
    args = [
        *["run", "--model", model, "--dataset", str(data), "--prompt-column", "question", "--ignore-eos"],
        *["--max-new-tokens", str(MAX_NEW_TOKENS), "--temperature", "0.8", "--no-show-rows"],
        *["--max-batch-rows", str(NUM_ROWS)],
    ]
    import transformers  # noqa: F401 (so that the runs need not import them)

    import job.run.runner  # noqa: F401

    ways = {"on": [*args, "--journal-in-flight"], "off": [*args, "--no-journal-in-flight"]}
    for pair in range(num_pairs):
        found = measure(ways if pair % 2 else dict(reversed(ways.items())), scratch)
        secs = {way: secs for way, (secs, _) in found.items()} | {"keeping, on": found["on"][1]}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(secs) + "\n")
        print(
            f"CPU seconds: {secs['off']:.2f} without, {secs['on']:.2f} with, {secs['keeping, on']:.3f} of them keeping"
        )
    pairs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    load = os.getloadavg()[0]
    print(f"{len(pairs)} pairs of {NUM_ROWS} rows in flight, {MAX_NEW_TOKENS} new tokens each; load {load:.1f}")
    print(f"with against without: {mean_and_margin([each['on'] / each['off'] - 1 for each in pairs])}")
    print(f"spent on keeping: {mean_and_margin([each['keeping, on'] / each['on'] for each in pairs])}")


if __name__ == "__main__":
    main()
