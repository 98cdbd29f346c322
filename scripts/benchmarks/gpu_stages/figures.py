"""Figures: one JSON line each, written as soon as they are known, and read by later stages and the summary."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_model import H100, Card

PATH, STAGE = "JOB_BENCH_FIGURES", "JOB_BENCH_STAGE"
"""The variables that tell a stage's process where figures go, and its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a stage found out about one case."""

    stage: str
    case: str
    measured: dict[str, Any]
    expected: dict[str, float] = field(default_factory=dict)
    """What the step model or another ceiling expects, by the names of ``measured``."""


def save(case: str, expected: Mapping[str, float] | None = None, **measured: Any) -> None:
    """Save what this stage measured for a case, and print it."""
    line = {"stage": os.environ[STAGE], "case": case}
    line |= {"measured": _rounded(measured), "expected": _rounded(expected or {})}
    with Path(os.environ[PATH]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _four_digits(value) if isinstance(value, float) else value for name, value in values.items()}


def _four_digits(value: float) -> float:
    return value if not math.isfinite(value) or value == 0 else round(value, 3 - math.floor(math.log10(abs(value))))


def read(path: Path) -> list[Figures]:
    """Return what has been saved so far."""
    if not path.exists():
        return []
    return [Figures(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def card() -> Card:
    """Return the ceilings that the stage ``ceilings`` measured on this card, or those of an H100 if it did not run."""
    found: dict[str, Any] = {}
    for figures in read(Path(os.environ[PATH])):
        if figures.stage == "ceilings":
            found |= figures.measured
    bandwidth, rate = found.get("copy_TB_per_s"), found.get("float16_TFLOP_per_s")
    return Card(bandwidth=bandwidth * 1e12 if bandwidth else H100.bandwidth, rate=rate * 1e12 if rate else H100.rate)
