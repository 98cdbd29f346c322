"""Loops: completions that end in the same tokens again and again.

Only the end of a completion is looked at, and only every few tokens, so this takes next to no time.
"""

from collections.abc import Sequence

MAX_PATTERN_TOKENS = 64
"""The longest pattern that counts as a loop."""

MIN_LOOP_TOKENS = 64
"""How many tokens a loop has at least: a line of dashes, or a table of zeros, is none."""

EVERY_TOKENS = 16
"""A completion is looked at whenever it has a multiple of this many tokens."""


def first_look(num_repeats: int) -> int:
    """Return the fewest tokens of a completion that can be a loop.

    >>> first_look(8), first_look(100)
    (64, 112)
    """
    return -(-max(num_repeats, MIN_LOOP_TOKENS) // EVERY_TOKENS) * EVERY_TOKENS


def is_looping(token_ids: Sequence[int], num_generated: int, num_repeats: int) -> bool:
    """Return whether a completion ends in a pattern that is there ``num_repeats`` times in a row, or more often.

    The answer is False unless this is one of the lengths at which completions are looked at.

    Args:
        token_ids: prompt and completion so far.
        num_generated: how many of them are the completion.

    >>> is_looping([7, *[1, 2, 3, 4] * 16], 64, 8), is_looping([7, *[1, 2, 3, 4] * 15, 1, 2, 3, 5], 64, 8)
    (True, False)
    """
    if num_generated % EVERY_TOKENS or num_generated < MIN_LOOP_TOKENS:
        return False
    end, last = len(token_ids), token_ids[-1]
    latest_first = token_ids[-2 : -2 - MAX_PATTERN_TOKENS : -1]
    for size in [size for size, token in enumerate(latest_first, 1) if token == last]:
        num_tokens = max(num_repeats * size, MIN_LOOP_TOKENS)
        begin = end - num_tokens
        if num_tokens <= num_generated and token_ids[begin : end - size] == token_ids[begin + size :]:
            return True
    return False
