"""What a trace says about idle time. Works on the trace alone."""

from collections.abc import Iterable
from typing import Any


def shares(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the share of the time in which the device runs nothing, and in which the host waits for it.

    Args:
        events: a Chrome trace's, times in microseconds.
    """
    timed = [event for event in events if event.get("ph") == "X" and "dur" in event]
    on_device = [event for event in timed if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    waits = [event for event in timed if event.get("cat") == "cuda_runtime" and "Synchronize" in event["name"]]
    copies = [event["name"] for event in on_device if event["cat"] == "gpu_memcpy"]
    if not on_device:
        return {"device_events": 0, "host_events": len(timed)}
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in on_device)
    window = max(end for _, end in spans) - spans[0][0]
    return {
        "gap_share": 1 - _covered(spans) / window,
        "wait_share": sum(event["dur"] for event in waits) / window,
        "device_events": len(on_device),
        "copies_to_device": sum("HtoD" in name for name in copies),
        "copies_to_host": sum("DtoH" in name for name in copies),
        "waits": len(waits),
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of sorted spans."""
    covered, until = 0.0, spans[0][0]
    for begin, end in spans:
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return covered
