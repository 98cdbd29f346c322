"""The decoder of an encoder-decoder while it writes several beams for each source: keys, values, and who has which.

Each source is encoded once, and its keys and values are computed once: as long as there is one beam of each row. Beams
of a row have the same source, so what the decoder has of it moves only when a row leaves the batch.

Letters: B rows, P places (beams of all rows), S tokens of a source, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache


class BeamDecoder:
    """The state of a batch on one rank."""

    def __init__(self, module: Any, source_ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Encode the sources.

        Args:
            module: transformers' model.
            source_ids: [B, S] int64, padded on the right.
            mask: [B, S] int64, 0 for padding.
        """
        self._module, self._mask = module, mask
        self._encoded = module.get_encoder()(input_ids=source_ids, attention_mask=mask, return_dict=True)
        # The one that transformers makes has as many layers as the encoder, which may be fewer than the decoder's.
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._row_of = list(range(len(source_ids)))
        """The row of each place."""

    def logits(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Append tokens to each place; return the logits [P, V] after the last of them.

        Args:
            tokens: as many for each place.
        """
        output = self._module(
            decoder_input_ids=torch.tensor(tokens, device=self._mask.device),
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, parents: Sequence[int]) -> None:
        """Let each place continue one of those before."""
        index = torch.tensor(parents, device=self._mask.device)
        rows = [self._row_of[parent] for parent in parents]
        if list(parents) != list(range(len(self._row_of))):
            self._cache.self_attention_cache.reorder_cache(index)
        if rows != self._row_of:
            self._cache.cross_attention_cache.reorder_cache(index)
            self._mask = self._mask.index_select(0, index)
            self._encoded.last_hidden_state = self._encoded.last_hidden_state.index_select(0, index)
        self._row_of = rows
