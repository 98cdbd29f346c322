"""Whether a model fits, as text for people and as JSON values for programs."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from job.observe.text import format_secs


@dataclass(frozen=True, slots=True, kw_only=True)
class FitAtSize:
    """What the process that needs the most memory needs at one tensor-parallel size."""

    tensor_parallel_size: int
    fits: bool
    """Whether the longest row can be computed."""
    weight_bytes: int
    logits_bytes: int
    activation_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    """In the KV cache of the replica."""
    rows_at_once: int
    """Rows of the median length that are computed at once."""
    max_rows: int
    """The most rows that are computed at once, if memory allows it."""
    full_kv_cache_bytes: int
    """The KV cache that ``max_rows`` rows of the median length need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """A model on a device."""

    device: str
    is_gpu: bool
    memory_bytes: int
    """Of each GPU; what is free, if it is a device of this machine."""
    num_params: int
    weight_bytes: int
    """Of the whole model."""
    asked: FitAtSize | None
    """At the run's size. None: the model's configuration does not contain the sizes."""
    smallest: FitAtSize | None
    """At the smallest size that fits; None if there is none."""
    least_secs: float | None
    """What one replica needs at least, by the data sheet. None if the device's speed is unknown, or it does not fit."""

    def to_dict(self) -> dict[str, object]:
        """Return JSON values. The names are stable: programs rely on them."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield lines of text."""
        yield (
            f"{self.num_params / 1e9:,.2f} billion parameters, {_size(self.weight_bytes)}; "
            f"{self.device} has {_size(self.memory_bytes)}{'' if self.is_gpu else ' free'}"
        )
        if self.asked is not None:
            yield from self._at_size(self.asked)
        if self.smallest is None:
            yield "it does not fit at any --tensor-parallel-size up to 16 that the model allows"
        elif self.asked is None or self.smallest.tensor_parallel_size != self.asked.tensor_parallel_size:
            yield f"--tensor-parallel-size {self.smallest.tensor_parallel_size} is the smallest that fits"
        if self.least_secs is not None and self.least_secs >= 1:
            yield (
                f"at least {format_secs(self.least_secs)} on one replica if every row reaches its limit of new tokens "
                "(from the data sheet; not measured)"
            )

    def _at_size(self, at: FitAtSize) -> Iterator[str]:
        each = "GPU" if self.is_gpu else "process"
        yield (
            f"--tensor-parallel-size {at.tensor_parallel_size}, each {each}: weights {_size(at.weight_bytes)}, "
            f"logits {_size(at.logits_bytes)}, activations about {_size(at.activation_bytes)}"
        )
        if not at.fits:
            yield f"this does not fit: {_size(at.kv_cache_bytes)} would be left for the KV cache"
        else:
            rows = "1 row" if at.rows_at_once == 1 else f"{at.rows_at_once:,} rows"
            yield (
                f"{_size(at.kv_cache_bytes)} are left for the KV cache: {at.kv_cache_tokens:,} tokens, "
                f"{rows} of median length at once"
            )
            if at.rows_at_once < at.max_rows:
                yield f"all {at.max_rows:,} rows of a batch would take {_size(at.full_kv_cache_bytes)} of KV cache"


def _size(num_bytes: int) -> str:
    """Return a size for people.

    >>> _size(16_060_522_496), _size(21_495_808), _size(0)
    ('16.1 GB', '21 MB', '0 MB')
    """
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
