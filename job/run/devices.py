"""What one worker computes on, as its figures and reports name it."""

from dataclasses import dataclass

import torch

from job.launch.energy import EnergyMeter


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """The devices of one replica."""

    count: int = 1
    name: str = ""
    meter: EnergyMeter | None = None
    """Of the leader's GPU. None: it is not a GPU of NVIDIA."""

    @classmethod
    def of(cls, device: torch.device, count: int) -> "Devices":
        """Return the devices of a replica, and begin to measure what they take.

        Args:
            device: the leader's.
            count: how many compute together.
        """
        if device.type != "cuda":
            return cls(count=count, name=device.type)
        properties = torch.cuda.get_device_properties(device)
        meter = EnergyMeter(f"GPU-{properties.uuid}") if torch.version.cuda else None
        return cls(count=count, name=properties.name, meter=meter)

    @property
    def joules(self) -> float | None:
        """What they have taken so far, if the others take as much as the leader's; None if that is not measured."""
        joules = None if self.meter is None else self.meter.joules
        return None if joules is None else joules * self.count
