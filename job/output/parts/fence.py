"""A fence: from here on, nothing counts that workers write who began before it, in whatever state they are.

A worker may be slow, frozen, or on a node that nobody thinks of, and wake up after the dataset was compared with what
is finished. A fence is an entry of the run's growth, created exclusively, so its place among the growths is the same
for all. It makes a new generation:

- Logs are named after the generation of their writer. Those of earlier ones count as far as the fence has sealed them.
- A part gets its name from a draft. Its writer looks for fences when it has that draft, and gives up if there is one;
  whoever fences discards all drafts after that. So a part either has its name before the drafts are discarded, or never
  gets it. (A store without drafts, such as S3, leaves one gap: between that look and the end of one request.)
"""

from collections.abc import Mapping, Sequence

from job.output.parts.growth import Growth, add_growth, read_growth
from job.output.parts.manifest import Manifest
from job.output.store.names import PART_PATTERN
from job.output.store.store import Store


class FencedOff(Exception):
    """This process has begun before the latest fence: what it was about to write does not count."""


DRAFTS = (PART_PATTERN.removesuffix(".parquet"), "[0-9]*")
"""What is discarded: drafts of parts, and of the keys that go with them."""


def add_fence(store: Store, manifest: Manifest, sealed: Mapping[str, int]) -> Manifest | None:
    """Fence off all workers that have begun. Returns the manifest of later ones; None if the run has changed meanwhile.

    Args:
        sealed: the logs that go on counting, and how much of each.

    Raises:
        OSError: the store cannot be written.
    """
    limit, num_rows = manifest.section("dataset")["limit"], manifest.section("plan")["num_rows"]
    if not add_growth(store, manifest.growth, Growth.now(limit, num_rows, sealed=dict(sealed))):
        return None
    discard_drafts_of_parts(store)
    return Manifest(manifest.identity, manifest.about, manifest.format_version, read_growth(store))


def discard_drafts_of_parts(store: Store) -> None:
    """Discard all drafts of parts, and of what gets its name together with them."""
    for pattern in DRAFTS:
        store.discard("", pattern)


def is_fenced_off(store: Store, known: Sequence[Growth]) -> bool:
    """Whether there is a fence that a worker does not know, so that nothing counts any more that it writes.

    Raises:
        OSError: the store cannot be read.
    """
    return any(each.sealed is not None for each in read_growth(store, len(known)))
