"""The tokens of choices, as they are scored after a prompt."""

from collections.abc import Sequence

from job.errors import UsageError
from job.modes.mode import Tokens


def choice_token_ids(tokens: Tokens, texts: Sequence[str], anchor: str) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each choice when it follows a prompt.

    Prompt and choice are tokenized separately; no token spans the border. A choice is encoded after ``anchor``, so that
    it reads exactly as it was written: many tokenizers (SentencePiece) put a space before a text that is encoded alone.

    Args:
        anchor: what prompts end with: the end of the chat template, or a line break.

    Raises:
        UsageError: two choices have the same tokens, or one has none.
    """
    ids_of: dict[tuple[int, ...], str] = {}
    for text in texts:
        ids = ids_after(tokens, anchor, text)
        if not ids:
            raise UsageError(f"--choices: {text!r} has no tokens. Leave it out.")
        if ids in ids_of:
            raise UsageError(f"--choices: {ids_of[ids]!r} and {text!r} are the same to the tokenizer. Leave one out.")
        ids_of[ids] = text
    return tuple(ids_of)


def ids_after(tokens: Tokens, anchor: str, text: str) -> tuple[int, ...]:
    """Return the tokens of a text after ``anchor``, or those of the text alone if a token would span the border."""
    anchor_ids, together = tokens.encode(anchor), tokens.encode(anchor + text)
    is_split = together[: len(anchor_ids)] == anchor_ids
    return tuple(together[len(anchor_ids) :] if is_split else tokens.encode(text))


def gap_token_ids(tokens: Tokens, before_answer: str) -> tuple[int, ...]:
    """Return the tokens of the white space at the end of what comes before an answer."""
    marker = before_answer.rstrip()
    return ids_after(tokens, marker, before_answer[len(marker) :])
