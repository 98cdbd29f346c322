"""The log probabilities of a row as OpenAI's API writes them: each token with its text, its bytes and its alternatives.

(platform.openai.com/docs/api-reference/chat/object, ``choices[].logprobs``; for texts completions/object.)
"""

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

TokenBytes = Callable[[int], bytes]
"""Returns the text of a token in UTF-8; a token may have a part of a character."""

LEAST = -9999.0
"""What the API writes for a token that is as good as impossible: JSON has no infinity."""

COLUMNS = ("token_ids", "token_logprobs", "top_token_ids", "top_logprobs")
"""What they are made from, as far as a run has it."""


def of_chat(sample: Mapping[str, Any], token_bytes: TokenBytes) -> dict[str, Any]:
    """Return the ``logprobs`` of a choice of ``chat.completion``."""
    content = [
        {**_token(token, logprob, token_bytes), "top_logprobs": [_token(*top, token_bytes) for top in tops]}
        for token, logprob, tops in _tokens(sample)
    ]
    return {"content": content}


def of_text(sample: Mapping[str, Any], token_bytes: TokenBytes) -> dict[str, Any]:
    """Return the ``logprobs`` of a choice of ``text_completion``, which has a list for each kind of value."""
    decoder, length = codecs.getincrementaldecoder("utf-8")("replace"), 0
    offsets, tokens, logprobs, all_tops = [], [], [], []
    for token, logprob, tops in _tokens(sample):
        offsets.append(length)
        length += len(decoder.decode(token_bytes(token)))
        tokens.append(_text(token_bytes(token)))
        logprobs.append(max(logprob, LEAST))
        all_tops.append({_text(token_bytes(top)): max(value, LEAST) for top, value in tops})
    return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": all_tops}


Scored = tuple[int, float]
"""A token and its log probability."""


def _tokens(sample: Mapping[str, Any]) -> Iterator[tuple[int, float, Sequence[Scored]]]:
    """Yield each token of a row, its log probability, and the most likely ones in its place."""
    tops: Sequence[Sequence[Scored]] = [()] * len(sample["token_ids"])
    if sample.get("top_token_ids") is not None:  # a row that asked for fewer than the run has nulls after them
        pairs = zip(sample["top_token_ids"], sample["top_logprobs"], strict=True)
        tops = [[top for top in zip(*pair, strict=True) if top[0] is not None] for pair in pairs]
    yield from zip(sample["token_ids"], sample["token_logprobs"], tops, strict=True)


def _token(token: int, logprob: float, token_bytes: TokenBytes) -> dict[str, Any]:
    encoded = token_bytes(token)
    return {"token": _text(encoded), "logprob": max(logprob, LEAST), "bytes": list(encoded)}


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", errors="replace")
