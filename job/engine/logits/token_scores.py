"""What rows want to know of each step beside its token: the token's log probability, and the most likely tokens.

Both are of the model's own distribution: before masks, penalties, temperature and filters.

Letters: B rows, R rows that ask, K most likely tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from job.engine.logits.reductions import log_totals
from job.engine.logits.sampling import SamplingBatch
from job.engine.transfers import Parcel, Sent

_BLOCK = 64
"""Tokens per block of the first round."""

Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PendingScores:
    """Scores on the device."""

    logprobs: torch.Tensor
    """[R] float32."""
    rows: Sequence[int]
    """[R]: the rows of the batch."""
    tops: Sequence[tuple[Sequence[int], torch.Tensor]]
    """For each K, the rows that ask for K tokens, and [., 2, K] int32: the tokens, and the bits of their float32 log
    probabilities, the most likely first."""

    @property
    def parts(self) -> list[torch.Tensor]:
        """[.] int32 each: all numbers, in the order in which ``read`` reads them."""
        return [self.logprobs.view(torch.int32), *(top.flatten() for _, top in self.tops)]

    def read(self, numbers: Numbers, num_rows: int) -> tuple[list[float | None], list[bytes]]:
        """Return the log probability of each row's token, None where it is not asked for; and the most likely tokens
        of each row as the bytes of [2, K] int32, empty if no row asks for any.

        Args:
            numbers: all ``parts``, on the host.
        """
        logprobs: list[float | None] = [None] * num_rows
        for row, value in zip(self.rows, numbers[: len(self.rows)].view(np.float32).tolist(), strict=True):
            logprobs[row] = value
        if not self.tops:
            return logprobs, []
        tops, begin = [b""] * num_rows, len(self.rows)
        for rows, top in self.tops:
            packed = numbers[begin : begin + top.numel()].tobytes()
            begin, size = begin + top.numel(), len(packed) // len(rows)
            for idx, row in enumerate(rows):
                tops[row] = packed[idx * size : (idx + 1) * size]
        return logprobs, tops


class TokenScores:
    """Scores for the rows of a batch that ask for them."""

    def __init__(self, batch: SamplingBatch, parcel: Parcel) -> None:
        """Add what the device needs to a parcel."""
        self._rows = batch.rows_where(lambda params: params.scores_tokens)
        self._index = _index(self._rows, len(batch), parcel)
        numbers = {params.num_top_logprobs for params in batch.distinct_params} - {0}
        self._tops: list[tuple[int, Sequence[int], Sent | None]] = []
        """Each K in a group of its own: which of several equal logits are among the first depends on it."""
        for number in sorted(numbers):
            rows = batch.rows_where(lambda params, number=number: params.num_top_logprobs == number)  # type: ignore[misc]
            places = {row: place for place, row in enumerate(self._rows)}
            index = _index([places[row] for row in rows], len(self._rows), parcel)
            self._tops.append((number, rows, index))

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor, top: torch.Tensor) -> PendingScores | None:
        """Return the scores of ``tokens`` [B] under logits [B, V]; None if no row asks.

        Args:
            top: [B]: the largest logit of each row.
        """
        if not self._rows:
            return None
        logits, tokens = _some(logits, self._index), _some(tokens, self._index)
        totals = log_totals(logits, _some(top, self._index))
        return PendingScores(
            logprobs=logits.gather(-1, tokens[:, None]).squeeze(-1).float() - totals,
            rows=self._rows,
            tops=[
                (rows, top_tokens(_some(logits, index), _some(totals, index), number))
                for number, rows, index in self._tops
            ],
        )


def top_tokens(logits: torch.Tensor, totals: torch.Tensor, number: int) -> torch.Tensor:
    """Return the K most likely tokens of each row: [R, 2, K] int32, see ``PendingScores.tops``.

    They are in the K blocks whose largest logits are the largest: a token outside has K tokens before it. For 20 of
    [256, 49152] bfloat16, a CPU takes a quarter of the time that ``topk`` takes. The last tokens, which fill no block,
    are looked at in any case.

    Args:
        logits: [R, V].
        totals: [R]: what ``log_totals`` gives for them.
        number: K, at most V.
    """
    vocab_size = logits.shape[1]
    if vocab_size < 4 * number * _BLOCK:
        values, ids = logits.float().topk(number, dim=-1)
    else:
        num_blocks, num_last = divmod(vocab_size, _BLOCK)
        blocks = logits[:, : num_blocks * _BLOCK].view(len(logits), num_blocks, _BLOCK)  # a view, as padding is not
        best = blocks.amax(dim=-1).float().topk(number, dim=-1).indices
        inside = blocks.gather(1, best[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
        if num_last:
            inside = torch.cat([inside, logits[:, -num_last:]], dim=-1)
            best = F.pad(best, (0, 1), value=num_blocks)
        values, places = inside.float().topk(number, dim=-1)
        ids = best.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK
    return torch.stack([ids.int(), (values - totals[:, None]).view(torch.int32)], dim=1)


def unpack_top_tokens(packed: bytes | bytearray, number: int) -> tuple[Numbers, npt.NDArray[np.float32]]:
    """Return the tokens and their log probabilities, both [T, K], from the bytes of T tokens."""
    numbers = np.frombuffer(packed, np.int32).reshape(-1, 2, number)
    return np.ascontiguousarray(numbers[:, 0]), np.ascontiguousarray(numbers[:, 1]).view(np.float32)


def pack_top_tokens(ids: Numbers, logprobs: npt.NDArray[np.float32]) -> bytes:
    """Return the bytes that ``unpack_top_tokens`` has unpacked."""
    return np.stack([ids, np.ascontiguousarray(logprobs).view(np.int32)], axis=1).tobytes()


def _index(rows: Sequence[int], num_rows: int, parcel: Parcel) -> Sent | None:
    """Send which of some rows are meant; None: all of them."""
    return None if len(rows) == num_rows else parcel.add(np.array(rows, np.int64))


def _some(tensor: torch.Tensor, index: Sent | None) -> torch.Tensor:
    return tensor if index is None else tensor.index_select(0, index())
