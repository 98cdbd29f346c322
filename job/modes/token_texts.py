"""Sampling options that name tokens by their text, as token ids for the engine."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from job.errors import UsageError
from job.modes.choice_tokens import ids_after
from job.modes.mode import Tokens
from job.tasks import SamplingParams
from job.wording import listed

if TYPE_CHECKING:
    from job.config import SamplingConfig

ANCHOR = "\n"
"""What a text is encoded after."""


def params_of(sampling: "SamplingConfig", tokens: Tokens) -> SamplingParams:
    """Return the parameters of each request of a run.

    Raises:
        UsageError: an option names a token that the tokenizer does not have.
    """
    for token in sampling.stop_token_ids:
        _check_id(tokens, token, "--stop-token-ids")
    words = (ids for word in sampling.bad_words for ids in _ids_of_word(tokens, word))
    return replace(
        sampling.params,
        biases=tuple(sorted(_biases(sampling, tokens).items())),
        bad_token_ids=tuple(dict.fromkeys([*sampling.bad_token_ids, *words])),
    )


def _biases(sampling: "SamplingConfig", tokens: Tokens) -> dict[int, float]:
    """Return the biases by token id."""
    biases: dict[int, float] = {}
    for name, bias in sampling.biases_by_name.items():
        token = _id_of(tokens, name)
        if token in biases:
            raise UsageError(f"--logit-bias names the token {token} twice. Leave one of its names out.")
        biases[token] = float(bias)
    return biases


def _id_of(tokens: Tokens, name: str) -> int:
    """Return the id of a token that is named by its id or its text."""
    if name.isdecimal():
        _check_id(tokens, int(name), "--logit-bias")
        return int(name)
    ids = ids_after(tokens, ANCHOR, name)
    if len(ids) != 1:
        parts = [f"{part} ({idx})" for part, idx in zip(tokens.names(ids), ids, strict=True)]
        what = f" but {len(ids)}: {listed(parts)}" if ids else ""
        raise UsageError(
            f"--logit-bias: {name!r} is not one token of this model{what}. "
            "Name tokens by their ids, or by texts that are one token."
        )
    return ids[0]


def _ids_of_word(tokens: Tokens, word: str) -> Iterator[tuple[int, ...]]:
    """Yield the tokens of a text, as it is and after a space."""
    for text in (word, f" {word}") if not word[0].isspace() else (word,):
        if ids := ids_after(tokens, ANCHOR, text):
            yield ids


def _check_id(tokens: Tokens, token: int, option: str) -> None:
    if token >= tokens.vocab_size:
        raise UsageError(f"{option} names the token {token}; the last one of this model is {tokens.vocab_size - 1}.")
