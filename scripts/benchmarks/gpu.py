"""Everything that is to be known about the CUDA path on one GPU, in one command.

Usage: scripts/bench gpu [--out DIR] [--minutes 9] [--stages A,B] [--rehearse] [--list]

Stages run in the order of their value, each in a process of its own with a limit of its own; one that fails or hangs
does not stop the next, and those that no time is left for are named. OUT/figures.jsonl has their figures, written as
they are found, OUT/log.txt all of their output, and OUT/summary.md the table of what was measured and what the step
model (scripts/bench step-model) expects. ``--rehearse`` runs every stage on a CPU with tiny models.

No network is needed. Without .venv, an interpreter that has torch and transformers will do: JOB_PYTHON=python3
scripts/bench gpu; wheels that scripts/gpu-wheels has put into .whl are used in addition to what it has.
"""

import argparse
import shlex
import sys
from pathlib import Path

from gpu_stages import figures
from gpu_stages.plan import STAGES, Stage
from gpu_stages.running import Outcome, prepare, run_stages
from gpu_stages.summary import summary

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run the stages that were asked for; 1 if one of them failed."""
    args = _arguments()
    if args.list:
        print("\n".join(f"{stage.name:28} {stage.limit_secs:4} s  {stage.finds}" for stage in STAGES))
        return 0
    stages, out = args.stages, args.out.resolve()  # a stage may change its directory
    out.mkdir(parents=True, exist_ok=True)
    for name in ("figures.jsonl", "log.txt", "summary.md"):
        (out / name).unlink(missing_ok=True)
    sys.path.insert(0, str(ROOT))
    prepare(is_rehearsal=args.rehearse)
    outcomes: list[Outcome] = []
    for outcome in run_stages(stages, out, args.minutes * 60, is_rehearsal=args.rehearse):
        outcomes.append(outcome)
        print(f"## {outcome.state}" + (f"\n{outcome.tail}" if outcome.problem else ""), flush=True)
        _write_summary(outcomes, stages, out)
    print((out / "summary.md").read_text(encoding="utf-8"))
    left_out = _left_out(outcomes, stages)
    if left_out:
        print("For the rest: " + shlex.join(["scripts/bench", "gpu", "--stages", ",".join(left_out)]))
    return int(any(outcome.problem for outcome in outcomes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu", help="where figures go [default: runs/gpu]")
    parser.add_argument("--minutes", type=float, default=9, help="the time for all stages [default: 9]")
    parser.add_argument("--stages", type=_stages, default=STAGES, help="names, with commas [default: all]")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny models and interpreted kernels")
    parser.add_argument("--list", action="store_true", help="list the stages and their limits")
    return parser.parse_args()


def _stages(text: str) -> tuple[Stage, ...]:
    by_name = {stage.name: stage for stage in STAGES}
    unknown = [name for name in text.split(",") if name not in by_name]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a stage. Stages: {', '.join(by_name)}.")
    return tuple(by_name[name] for name in text.split(","))


def _left_out(outcomes: list[Outcome], stages: tuple[Stage, ...]) -> list[str]:
    started = {outcome.stage.name for outcome in outcomes}
    return [stage.name for stage in stages if stage.name not in started]


def _write_summary(outcomes: list[Outcome], stages: tuple[Stage, ...], out: Path) -> None:
    text = summary(outcomes, figures.read(out / "figures.jsonl"), _left_out(outcomes, stages))
    (out / "summary.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
