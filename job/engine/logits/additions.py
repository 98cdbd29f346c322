"""What is added to a few logits of a row before anything else: biases, and minus infinity for what is ruled out.

Ruled out are tokens that would complete a bad word or repeat a sequence of a given length, and until a completion has
``min_new_tokens``, those that end it.
The host knows all of this when a choice is started, from the tokens so far; it travels with the choice's other numbers.

Letters: B rows, V vocabulary, N additions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from job.engine.logits.history import RowTokens
from job.engine.logits.reductions import largest
from job.engine.logits.sampling import SamplingBatch
from job.engine.transfers import Parcel, Sent
from job.tasks import SamplingParams

MAX_KEPT_RULES = 1024
"""For how many different parameters the rules are kept."""


@dataclass(frozen=True, slots=True)
class Additions:
    """N numbers for logits [B, V] of a step, by their places there."""

    places: npt.NDArray[np.int64]
    """[N]: row * V + token. A place may occur several times."""
    numbers: npt.NDArray[np.float32]
    """[N]."""

    def send(self, parcel: Parcel) -> "SentAdditions":
        """Add them to a parcel."""
        return SentAdditions(parcel.add(self.places), parcel.add(self.numbers))


@dataclass(frozen=True, slots=True)
class SentAdditions:
    """Additions on the device; see ``Additions``."""

    places: Sent
    numbers: Sent

    def apply(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores [B, V] float32 with the numbers, and [B] bool: whether a row has a token that is possible.

        The scores of a row that has none are 0.
        """
        scores = scores.reshape(-1).index_add(0, self.places(), self.numbers()).view_as(scores)
        is_possible = largest(scores)[0] > -torch.inf
        return torch.where(is_possible[:, None], scores, 0.0), is_possible


def additions_of(batch: SamplingBatch, rows: Sequence[RowTokens], vocab_size: int) -> Additions | None:
    """Return what a step adds to logits [B, V]; None if that is nothing, which costs almost nothing to find out.

    Args:
        rows: the tokens of each row.
    """
    rules_of = {id(params): _rules_of(params, batch.eos_token_ids, vocab_size) for params in batch.distinct_params}
    if not any(rules_of.values()):
        return None
    rows_of: dict[_Rules, list[int]] = {}
    for row, params in enumerate(batch.params):
        if (rules := rules_of[id(params)]) is not None:
            rows_of.setdefault(rules, []).append(row)
    found = (piece for rules, own in rows_of.items() for piece in _additions(rules, own, batch, rows))
    pieces = [piece for piece in found if len(piece[0])]
    if not pieces:
        return None
    places, numbers = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return Additions(places, numbers)


@dataclass(frozen=True, slots=True, eq=False)
class _Rules:
    """What the parameters of a row say about its next token. Equal parameters have the same object."""

    vocab_size: int
    tokens: npt.NDArray[np.int64]
    """Those whose logits change at each step."""
    numbers: npt.NDArray[np.float32]
    """What is added to them."""
    ends: npt.NDArray[np.int64]
    """Those that are ruled out until there are ``min_new_tokens``."""
    words: Mapping[int, Sequence[tuple[int, ...]]]
    """Bad words of several tokens, by their last token but one."""
    ngram_size: int
    """No sequence of this many tokens may occur twice; 0: any may."""

    def last_of_words(self, row: RowTokens) -> list[int]:
        """Return the tokens that would complete a bad word."""
        ids, num_generated = row.token_ids, len(row.token_ids) - row.num_prompt
        return [
            word[-1]
            for word in (self.words.get(ids[-1], ()) if num_generated else ())
            if len(word) - 1 <= num_generated and tuple(ids[1 - len(word) :]) == word[:-1]
        ]

    def last_of_ngrams(self, row: RowTokens) -> list[int]:
        """Return the tokens that followed an earlier occurrence of the row's latest tokens, the prompt included."""
        ids, num_before = row.token_ids, self.ngram_size - 1
        if num_before == 0:
            return [token for token in set(ids) if token < self.vocab_size]
        latest, found = list(ids[-num_before:]), set()
        idx = _find(ids, latest[-1], num_before - 1)
        while 0 <= idx < len(ids) - 1:
            if list(ids[idx - num_before + 1 : idx + 1]) == latest:
                found.add(ids[idx + 1])
            idx = _find(ids, latest[-1], idx + 1)
        return [token for token in found if token < self.vocab_size]


Piece = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Places and numbers, see ``Additions``."""


def _additions(rules: _Rules, own: Sequence[int], batch: SamplingBatch, rows: Sequence[RowTokens]) -> Iterator[Piece]:
    """Yield the additions for the rows ``own``, which have these rules."""
    yield _at(own, rules.tokens, rules.vocab_size), np.tile(rules.numbers, len(own))
    early = [row for row in own if batch.positions[row] < batch.params[row].min_new_tokens]
    ruled_out = [_at(early, rules.ends, rules.vocab_size)]
    if rules.words:
        words = [row * rules.vocab_size + token for row in own for token in rules.last_of_words(rows[row])]
        ruled_out.append(np.array(words, np.int64))
    if rules.ngram_size:
        repeated = [row * rules.vocab_size + token for row in own for token in rules.last_of_ngrams(rows[row])]
        ruled_out.append(np.array(repeated, np.int64))
    for places in ruled_out:
        yield places, np.full(len(places), -math.inf, np.float32)


def _at(rows: Sequence[int], tokens: npt.NDArray[np.int64], vocab_size: int) -> npt.NDArray[np.int64]:
    """Return the places of the same tokens in some rows."""
    return np.add.outer(np.array(rows, np.int64) * vocab_size, tokens).reshape(-1)


def _rules_of(params: SamplingParams, eos_token_ids: frozenset[int], vocab_size: int) -> _Rules | None:
    """Return the rules; None if there are none."""
    ends = frozenset[int]()
    if params.min_new_tokens:
        ends = params.eos_of(eos_token_ids).union(params.stop_token_ids)
    if not (ends or params.biases or params.bad_token_ids or params.no_repeat_ngram_size):
        return None
    return _make_rules(params.biases, params.bad_token_ids, ends, params.no_repeat_ngram_size or 0, vocab_size)


@lru_cache(MAX_KEPT_RULES)
def _make_rules(
    biases: tuple[tuple[int, float], ...],
    bad_token_ids: tuple[tuple[int, ...], ...],
    ends: frozenset[int],
    ngram_size: int,
    vocab_size: int,
) -> _Rules:
    """Return the rules. Tokens that the model does not have are left out: their places would be in the next row."""
    known = [(token, bias) for token, bias in biases if token < vocab_size]
    words = [word for word in bad_token_ids if max(word) < vocab_size]
    known += [(word[0], -math.inf) for word in words if len(word) == 1]
    by_token: dict[int, list[tuple[int, ...]]] = {}
    for word in words:
        if len(word) > 1:
            by_token.setdefault(word[-2], []).append(word)
    return _Rules(
        vocab_size=vocab_size,
        tokens=np.array([token for token, _ in known], np.int64),
        numbers=np.array([number for _, number in known], np.float32),
        ends=np.array(sorted(token for token in ends if token < vocab_size), np.int64),
        words=by_token,
        ngram_size=ngram_size,
    )


def _find(ids: Sequence[int], token: int, begin: int) -> int:
    """Return the place of a token from a place on; -1 if there is none."""
    try:
        return ids.index(token, begin)
    except ValueError:
        return -1
