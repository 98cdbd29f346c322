"""How numbers of few bits are packed into words, and how scales are spread over them. Knows no format."""

from collections.abc import Sequence

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The 4-bit floats of the OCP Microscaling specification, by their bits."""


def unpacked(words: torch.Tensor, num_bits: int, dim: int = 1) -> torch.Tensor:
    """Return the numbers in words, the lowest bits first.

    Args:
        words: ``[R, C] int32``, or ``uint8``.
        num_bits: 2, 4 or 8 of each number.
        dim: along which they are packed.

    Returns:
        ``uint8``, of which ``dim`` is longer by as many times as a word holds numbers.

    >>> unpacked(torch.tensor([[0x76543210, -1]], dtype=torch.int32), 4).tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7, 15, 15, 15, 15, 15, 15, 15, 15]]
    """
    if dim == 0:
        return unpacked(words.T.contiguous(), num_bits).T
    octets = words.contiguous().view(torch.uint8)
    if num_bits == 8:
        return octets
    shifts = torch.arange(0, 8, num_bits, dtype=torch.uint8)
    numbers: torch.Tensor = (octets[..., None] >> shifts) & (2**num_bits - 1)
    return numbers.flatten(-2)


def spread(scales: torch.Tensor, shape: Sequence[int], block: Sequence[int]) -> torch.Tensor | None:
    """Return scales with one for each row and column, or for all of them where there is only one.

    Blocks at the ends may be cut off: DeepSeek-V3's ``kv_a_proj_with_mqa`` has 576 rows in blocks of 128.

    Args:
        scales: ``[..., R, C]``; or a single one.
        shape: of the weights.
        block: rows and columns that share a scale.

    Returns:
        ``float32``, which can be multiplied with the weights. None if this is not how many scales there are.

    >>> spread(torch.tensor([[1.0, 2.0]]), (2, 3), (2, 2)).tolist()
    [[1.0, 1.0, 2.0]]
    """
    scales = scales.float()
    if scales.numel() == 1:
        return scales.reshape(())
    if scales.dim() != len(shape):
        return None
    for dim, size in ((-2, block[0]), (-1, block[1])):
        if scales.shape[dim] == 1 and size >= shape[dim]:
            continue
        if scales.shape[dim] != -(-shape[dim] // size):
            return None
        if size > 1:
            scales = scales.repeat_interleave(size, dim).narrow(dim, 0, shape[dim])
    return scales
