"""Decode steps under torch's profiler: how much of the time the device is idle, and how long the host waits."""

import gzip
import json
from pathlib import Path
from typing import Any

from _model_shapes import SHAPES
from torch.profiler import ProfilerActivity, profile

from . import engines, figures
from .device import ON_CUDA, wait
from .gaps import shares
from .models import make_model, make_prompts

LARGEST_TRACE = 15 * 2**20
"""Bytes of the trace that is kept."""


def main(
    *, shape: str, rows: int, context: int, num_steps: int, trace: str, options: dict[str, Any] | None = None
) -> None:
    """Profile some decode steps, and keep the trace."""
    model = make_model(shape)
    prompts = make_prompts(rows, context, SHAPES[shape].vocab)
    engine, notes = engines.build(model, {"max_batch_rows": rows, **(options or {})})
    engines.submit(engine, prompts, num_steps + 64)
    engines.reach_decoding(engine, rows)
    engines.step_ms(engine, 5)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if ON_CUDA else [])]
    wait()
    with profile(activities=activities) as profiler:
        ms = engines.step_ms(engine, num_steps)
        wait()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=70))
    raw = Path(trace).with_suffix(".json")
    profiler.export_chrome_trace(str(raw))
    events = json.loads(raw.read_text(encoding="utf-8"))["traceEvents"]
    _keep(raw, Path(trace))
    case = f"{shape}, {rows} x {context}, {num_steps} steps"
    figures.save(case, ms_with_profiler=ms, notes=notes, **shares(events))


def _keep(raw: Path, target: Path) -> None:
    """Compress a trace. One that is too large even so is left out."""
    target.write_bytes(gzip.compress(raw.read_bytes()))
    raw.unlink()
    if target.stat().st_size > LARGEST_TRACE:
        print(f"the trace of {target.stat().st_size:,} bytes is left out; profile fewer steps")
        target.unlink()
