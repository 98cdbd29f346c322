"""The log probabilities of given tokens, from the logits before them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from job.engine.logits.reductions import token_logprobs
from job.engine.transfers import Download, Upload


class PendingTextScores:
    """Log probabilities that the device may still be computing."""

    tokens = None
    """No token is chosen."""

    def __init__(self, logits: torch.Tensor, token_ids: Sequence[int]) -> None:
        """Start to compute the log probability of each token.

        Args:
            logits: [W, V], in the model's dtype: what it expects at the place of each token.
            token_ids: [W].
        """
        [tokens] = Upload(logits.device)(np.array(token_ids, np.int64))
        self._copied = Download(token_logprobs(logits, tokens))

    def result(self) -> npt.NDArray[np.float64]:
        """Wait for them, and return [W]. Not finite where the logits are not, or rule the token out."""
        return self._copied.result().astype(np.float64)
