"""Which architectures can be cut: every causal one of transformers, tiny and random, in fp32.

Usage: scripts/bench architectures [--try] [--only NAME,NAME,...] [--secs N] [--state DIR]

At size 1, the engine that the job chooses completes 6 prompts of 3 to 90 tokens; at size 2, two processes do. Printed:
the engine, the share of the weights that the first process holds, and how many completions are equal to those of plain
transformers, or the reason. ``--try`` also cuts what the job refuses, first all of it, then without attention.
Processes serve one architecture after the other; if one fails or takes more than N seconds (90), they are ended, and
new ones take the next. With ``--state``, models and results stay in a directory, and what is there is not done again.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAX_NEW_TOKENS = 12
CHUNK = 12
"""Architectures between two savings of what was found."""

TRIALS = ("all", "no attention")
"""Values of ``Cut``."""


def prompts() -> list[list[int]]:
    """Return 6 prompts of 3 to 90 tokens."""
    rng = random.Random(5)
    return [[rng.randrange(2, 258) for _ in range(num_tokens)] for num_tokens in (3, 7, 20, 33, 61, 90)]


# What one process does.


def serve(size: int, jobs: Path, results: Path) -> None:
    """Serve one architecture after the other, and append a line for each."""
    import logging

    import torch
    import transformers

    from job.errors import UsageError
    from job.launch.environment import read_process_info
    from job.launch.replica import Replica

    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    replica = Replica(read_process_info(os.environ, size))
    for one in json.loads(jobs.read_text(encoding="utf-8")):
        try:
            line = run(one, replica, size)
        except BaseException as error:  # the other process may wait in a collective: both are ended
            text = str(error).strip().splitlines() or [""]
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = {"reason": f"{type(error).__name__}: {text[0][:160]}", "where": f"{where.filename}:{where.lineno}"}
            if size > 1 and not isinstance(error, UsageError):
                _append(results.with_suffix(f".{replica.info.rank}"), {**line, "name": one["name"]})
                os._exit(1)
        if replica.info.is_leader:
            _append(results, {**line, "name": one["name"]})
    os._exit(0)


def run(one: dict[str, Any], replica: Any, size: int) -> dict[str, Any]:
    """Complete the prompts with one model. At size 1, make it first, and ask plain transformers."""
    import torch

    from job.config import EngineConfig, ModelConfig
    from job.engine.model import tensor_parallel
    from job.engine.model.info import inspect_model
    from job.engine.model.loading import load_model
    from job.engine.registry import ENGINES
    from job.records import Request
    from job.remote.model_files import ModelFiles
    from job.tasks import Generate, SamplingParams

    directory = Path(one["directory"])
    expected = directory / "expected.json"
    if size == 1:
        from _tiny_architectures import make_architecture

        make_architecture(directory, one["name"])
        expected.write_text(json.dumps(list(greedy(directory))), encoding="utf-8")
    if one.get("cut"):
        tensor_parallel.cut_of = lambda config, **_: tensor_parallel.Cut(one["cut"])
        sys.modules["job.engine.model.repairs"].cut_of = tensor_parallel.cut_of  # type: ignore[attr-defined]
    config = ModelConfig(model=str(directory), dtype="float32", max_model_len=256)
    info = inspect_model(config, ModelFiles(name=config.model), torch.device("cpu"), size)
    whole = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    model = load_model(config, info, replica, [])
    held = sum(parameter.numel() * parameter.element_size() for parameter in model.module.parameters())
    notes: list[str] = []
    engine_config = EngineConfig(tensor_parallel_size=size, max_batch_rows=4, overlap=False)
    engine = ENGINES["paged"].build(model, engine_config, replica, should_stop=lambda: False, note=notes.append)
    if not replica.info.is_leader:
        engine.follow()
        return {}
    task = Generate(params=SamplingParams(max_new_tokens=MAX_NEW_TOKENS))
    for row_idx, prompt in enumerate(prompts()):
        engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=prompt, task=task))
    done = []
    while engine.num_pending:
        done += engine.step()
    engine.close(0)
    done.sort(key=lambda generation: generation.request.key)
    equal = [
        list(got.token_ids) == wanted
        for got, wanted in zip(done, json.loads(expected.read_text(encoding="utf-8")), strict=True)
    ]
    errors = [str(got.error) for got in done if got.error]
    return {
        "type": info.config.model_type,
        "engine": "static" if any("static batches" in note for note in notes) else "paged",
        "why": notes[0].partition("slower: ")[2] if notes else "",
        "equal": sum(equal),
        "share": round(held / whole, 3),
        **({"reason": errors[0][:160]} if errors else {}),
    }


def greedy(directory: Path) -> Iterator[list[int]]:
    """Yield what plain transformers completes each prompt with, one at a time, with the whole of the model."""
    import torch
    from _tiny_architectures import class_of
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    # In some releases (5.17) the other attentions leave out soft-capping.
    eager = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    model = class_of(config.model_type).from_pretrained(directory, dtype=torch.float32, **eager).eval()
    for prompt in prompts():
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, do_sample=False
            )
        yield output[0, len(prompt) :].tolist()


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


# What the command does.


def serve_all(size: int, jobs: Sequence[dict[str, Any]], tmp: Path, secs: float) -> dict[str, dict[str, Any]]:
    """Serve all jobs, with new processes after each that failed or took too long."""
    found: dict[str, dict[str, Any]] = {}
    waiting = list(jobs)
    while waiting:
        asked, results = tmp / "jobs.json", tmp / "results"
        for file in tmp.glob("results*"):
            file.unlink()
        asked.write_text(json.dumps(waiting), encoding="utf-8")
        lines = watch(start(size, asked, results), results, len(waiting), secs)
        found |= {line["name"]: line for line in lines}
        waiting = waiting[len(lines) :]
        if waiting:  # the first of them failed, or it was killed
            failed = [line for rank in range(size) for line in read(results.with_suffix(f".{rank}"))]
            found[waiting[0]["name"]] = failed[0] if failed else {"reason": f"took more than {secs:.0f} s, or crashed"}
            waiting = waiting[1:]
    return found


def start(size: int, jobs: Path, results: Path) -> list[subprocess.Popen[bytes]]:
    """Start the processes of one replica."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        launcher = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        if size > 1:
            env |= {name: str(value) for name, value in launcher.items()}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, __file__, "--serve", str(size), str(jobs), str(results)]
        with results.with_suffix(f".log{rank}").open("wb") as log:
            processes.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log))
    return processes


def watch(processes: Sequence[subprocess.Popen[bytes]], results: Path, num: int, secs: float) -> list[dict[str, Any]]:
    """Wait until all is done, one process fails, or nothing has been done for so long. Then end the processes."""
    lines: list[dict[str, Any]] = []
    since = time.monotonic()
    while len(lines) < num and time.monotonic() - since < secs:
        failed = any(process.poll() for process in processes)
        if len(now := read(results)) > len(lines):
            lines, since = now, time.monotonic()
            print(f"  {lines[-1]}", file=sys.stderr)
        elif failed:
            break
        time.sleep(0.2)
    for process in processes:
        process.kill()
        process.wait()
    return lines


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that may not be there."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def main() -> None:
    """Print the table."""
    from _tiny_architectures import NAMES

    parser = argparse.ArgumentParser()
    parser.add_argument("--try", action="store_true", dest="tries")
    parser.add_argument("--only", default="")
    parser.add_argument("--secs", type=float, default=90)
    parser.add_argument("--state")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else NAMES
    with tempfile.TemporaryDirectory() as made:
        tmp = Path(args.state or made)
        tmp.mkdir(exist_ok=True)
        table = Table(tmp, args.secs)
        for first in range(0, len(names), CHUNK):
            table.fill(names[first : first + CHUNK], TRIALS if args.tries else ())
    alone, cut = table.alone, table.cut
    print("| architecture | size 1 | size 2 | share of rank 0 |\n|---|---|---|---|")
    for name in names:
        found = cut.get(name, {})
        share = f"{found['share'] / alone[name]['share']:.2f}" if "share" in found else ""
        print(f"| {name} | {cell(alone[name])} | {cell(found)} | {share} |")
    print(json.dumps({"alone": alone, "cut": cut}))


class Table:
    """What is known of each architecture, also on disk."""

    def __init__(self, tmp: Path, secs: float) -> None:
        self._tmp, self._secs = tmp, secs
        self._path = tmp / "found.json"
        found = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self.alone: dict[str, dict[str, Any]] = found.get("alone", {})
        self.cut: dict[str, dict[str, Any]] = found.get("cut", {})

    def fill(self, names: Sequence[str], trials: Sequence[str]) -> None:
        """Run what is not known."""
        jobs = [{"name": name, "directory": str(self._tmp / name)} for name in names]
        self.alone |= serve_all(1, [job for job in jobs if job["name"] not in self.alone], self._tmp, self._secs)
        left = [job for job in jobs if "equal" in self.alone[job["name"]]]
        self.cut |= serve_all(2, [job for job in left if job["name"] not in self.cut], self._tmp, self._secs)
        for trial in trials:
            again = [{**job, "cut": trial} for job in left if not self._is_done(self.cut[job["name"]], trial)]
            for name, line in serve_all(2, again, self._tmp, self._secs).items():
                before = self.cut[name]
                tried = {**before.get("tried", {}), trial: line}
                self.cut[name] = {**(line if "equal" in line else before), "cut": trial, "tried": tried}
        self._path.write_text(json.dumps({"alone": self.alone, "cut": self.cut}), encoding="utf-8")

    def _is_done(self, line: dict[str, Any], trial: str) -> bool:
        return line.get("equal") == len(prompts()) or trial in line.get("tried", {})


def cell(line: dict[str, Any]) -> str:
    """Describe a result."""
    if "equal" not in line:
        return line.get("reason", "")
    return f"{line['engine']}, {line['equal']}/{len(prompts())}" + (f" ({line['cut']})" if "cut" in line else "")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
