"""What a run has cost so far: time of its devices, energy where they measure it, and the price of the time.

The time counts from when a worker has loaded its model to its last figures: what a cluster bills is more, since it
includes loading and waiting in between.
"""

from dataclasses import dataclass
from typing import Any

from job.report.timeline import Timeline

SECS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a run."""

    device_hours: float
    devices: tuple[str, ...]
    """What it ran on; empty if the workers did not say."""
    num_tokens: int
    """Prompt and completion tokens computed, those of lost and repeated rows included."""
    tokens_per_device_sec: float | None
    completion_tokens_per_device_sec: float | None
    kwh: float | None
    """Of the workers that measured it; None if none did."""
    is_all_measured: bool
    price_per_hour: float | None
    price: float | None
    price_per_1000_rows: float | None
    price_per_million_tokens: float | None
    """Of completion tokens."""

    @property
    def unit(self) -> str:
        """What a device is: a GPU, a process on a CPU, or, if workers differ or did not say, a device."""
        if self.devices == ("cpu",):
            return "process"
        return "GPU" if self.devices and "cpu" not in self.devices else "device"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "unit": self.unit,
            "device_hours": self.device_hours,
            "devices": list(self.devices),
            "num_tokens": self.num_tokens,
            "tokens_per_device_sec": self.tokens_per_device_sec,
            "completion_tokens_per_device_sec": self.completion_tokens_per_device_sec,
            "kwh": self.kwh,
            "is_all_measured": self.is_all_measured,
            "price_per_hour": self.price_per_hour,
            "price": self.price,
            "price_per_1000_rows": self.price_per_1000_rows,
            "price_per_million_tokens": self.price_per_million_tokens,
        }


def cost_of(timeline: Timeline, price_per_hour: float | None) -> Cost:
    """Return what the workers of a time line cost.

    Args:
        price_per_hour: of one device, in any currency.
    """
    workers = timeline.workers
    secs = sum((worker.end - worker.start) * worker.num_devices for worker in workers)
    tokens = sum(worker.num_tokens for worker in workers)
    completion_tokens = sum(worker.num_completion_tokens for worker in workers)
    rows = sum(worker.num_rows for worker in workers)
    joules = [worker.joules for worker in workers if worker.joules is not None]
    price = None if price_per_hour is None else secs / SECS_PER_HOUR * price_per_hour
    return Cost(
        device_hours=secs / SECS_PER_HOUR,
        devices=tuple(sorted({worker.device for worker in workers if worker.device})),
        num_tokens=tokens,
        tokens_per_device_sec=_ratio(tokens, secs),
        completion_tokens_per_device_sec=_ratio(completion_tokens, secs),
        kwh=sum(joules) / JOULES_PER_KWH if joules else None,
        is_all_measured=len(joules) == len(workers),
        price_per_hour=price_per_hour,
        price=price,
        price_per_1000_rows=None if price is None else _ratio(1000 * price, rows),
        price_per_million_tokens=None if price is None else _ratio(1e6 * price, completion_tokens),
    )


def _ratio(value: float, by: float) -> float | None:
    return value / by if by else None
