"""Ours and the peers in turn, some rounds; prints every run and the ratios of the medians.

Usage: scripts/bench compare [ROUNDS] [NUM_PROMPTS] [DATA.jsonl]

VLLM_PYTHON=path of vLLM's python; SYSTEMS=paged,vllm for some only. Run it on an idle machine, and give a file with as
many different questions as prompts: repeated ones are shared. ``paged-2`` is two processes with one thread each; its
time is that of the slower.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
QUESTIONS = HERE.parent / "demo-data/gsm8k-200.jsonl"


def last_json(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a benchmark and return its figures."""
    output, _ = process.communicate()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert process.returncode == 0 and lines, f"{process.args}: exit code {process.returncode}"
    figures: dict[str, float] = json.loads(lines[-1])
    return figures


def start(command: list[str], num_threads: int) -> subprocess.Popen[str]:
    """Start a benchmark."""
    env = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)


def main(rounds: int = 3, num_prompts: int = 256, data: str = str(QUESTIONS)) -> None:
    """Run all systems in turn."""
    ours = [sys.executable, str(HERE / "engine.py"), str(num_prompts), "--data", data]
    systems = {
        "paged": [ours],
        "paged-2": [[*ours, "--part", "0/2"], [*ours, "--part", "1/2"]],
        "transformers": [[sys.executable, str(HERE / "peer_transformers.py"), str(num_prompts), "64", data]],
    }
    in_turn(systems_of(systems, "peer_vllm.py", [str(num_prompts), data]), rounds, "paged")


Systems = dict[str, list[list[str]]]
"""Name to the commands that run at the same time."""


def systems_of(systems: Systems, vllm_script: str, vllm_args: list[str]) -> Systems:
    """Return the systems to run: with vLLM if its python is named, or only those that are named."""
    if "VLLM_PYTHON" in os.environ:
        systems = {**systems, "vllm": [[os.environ["VLLM_PYTHON"], str(HERE / vllm_script), *vllm_args]]}
    if "SYSTEMS" in os.environ:
        systems = {name: systems[name] for name in os.environ["SYSTEMS"].split(",")}
    return systems


def in_turn(systems: Systems, rounds: int, base: str) -> None:
    """Run all systems in turn, some rounds, and print every run and the medians over that of ``base``."""
    secs: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, commands in systems.items():
            processes = [start(command, 2 // len(commands)) for command in commands]
            figures = [last_json(process) for process in processes]
            secs[name].append(max(part["secs"] for part in figures))
            print(json.dumps({"system": name, "runs": figures}), flush=True)
    medians = {name: statistics.median(values) for name, values in secs.items()}
    ratios = {name: round(median / medians.get(base, median), 2) for name, median in medians.items()}
    print(json.dumps({"secs": secs, "median_secs": medians, f"times_{base}": ratios}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:4])
