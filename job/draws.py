"""Random numbers that depend only on (seed, row_idx, sample_idx, position) (law 5). A further attempt has another seed.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), which is
counter-based: the key is the seed, and the counter is the other three.

Letters: B rows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from job.records import SampleKey

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(
    counter: npt.NDArray[np.uint64], key: tuple[int, int] | npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Return four random 32-bit words for each counter.

    Args:
        counter: [4, B], words below 2**32.
        key: two words below 2**32, or [2, B] of them.

    Returns:
        [4, B] uint64, words below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = np.asarray(key, np.uint64)
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3])


def row_bits(seed: int | Sequence[int], keys: Sequence[SampleKey], positions: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return 64 random bits for each row: the draw for one position of its completion.

    Args:
        seed: one for all rows, or one per row.
        positions: one per row; 0 is the first generated token.

    Returns:
        [B] int64.
    """
    rows = np.array([row_idx for row_idx, _ in keys], np.uint64)
    samples = np.array([sample_idx for _, sample_idx in keys], np.uint64)
    counter = np.stack([rows & _LOW, rows >> _SHIFT, samples, np.array(positions, np.uint64)])
    seeds = np.broadcast_to(np.array(seed, np.uint64), len(keys))
    words = philox4x32(counter, np.stack([seeds & _LOW, seeds >> _SHIFT]))
    bits: npt.NDArray[np.int64] = ((words[0] << _SHIFT) | words[1]).view(np.int64)
    return bits


def next_seed(seed: int) -> int:
    """Return the seed of a further attempt at a row's completion: SplitMix64 of the last one's, below 2**63.

    >>> next_seed(0), next_seed(0) == next_seed(1)
    (7070836379803831727, False)
    """
    mixed = (seed + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) % 2**63


def seed_of_moved(seed: int) -> int:
    """Return the seed of rows whose own draws other rows of the run have, below 2**63. It is no seed of an attempt.

    >>> seed_of_moved(0) not in (next_seed(0), next_seed(next_seed(0)))
    True
    """
    return next_seed(next_seed(seed) ^ 0x6A09E667F3BCC909)


def uniform(bits: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Turn each value of 64 random bits into a number in [0, 1)."""
    numbers: npt.NDArray[np.float64] = (bits.view(np.uint64) >> np.uint64(11)) * np.float64(2.0**-53)
    return numbers
