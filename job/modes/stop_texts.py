"""Stop strings: whether the latest token of a completion completes one, and what of the text comes before it."""

import re
from collections.abc import Collection, Sequence

from job.modes.mode import Setting, Tokens

SPARE_TAIL_TOKENS = 4
"""Tokens beyond those of a stop string: for special tokens among them, and because decoding may change the start."""


class StopTexts:
    """The stop strings of some rows. Engines call it as an ``EndsText``."""

    def __init__(
        self,
        tokens: Tokens,
        texts: Sequence[str],
        special_tokens: Collection[str] = (),
        *,
        skips_leading_space: bool = False,
    ) -> None:
        """Look for ``texts``, at least one, in what ``tokens`` decodes; they may contain some of ``special_tokens``.

        Args:
            skips_leading_space: whether white space at the beginning of a completion does not count. Models write an
                empty line between their reasoning and the answer.
        """
        self._tokens, self.texts, self._skips_leading_space = tokens, tuple(texts), skips_leading_space
        self._reads_special = any(token in text for text in self.texts for token in special_tokens)
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)))
        # The last token completes the stop string, and every token but a special one is at least one byte of text.
        self._num_tail_tokens = max(len(text.encode()) for text in self.texts) + SPARE_TAIL_TOKENS

    @classmethod
    def of(cls, setting: Setting, texts: Sequence[str]) -> "StopTexts":
        """Return the stop strings for the tokenizer of a run."""
        special_tokens = setting.tokens.special_tokens if setting.stops_at_special_tokens else ()
        return cls(setting.tokens, texts, special_tokens, skips_leading_space=bool(setting.before_answer))

    def __call__(self, completions: Sequence[Sequence[int]]) -> list[bool]:
        """Return, for the ids of each completion, whether the last token completed a stop string."""
        ends = [list(ids[-self._num_tail_tokens :]) for ids in completions]
        tails = self._tokens.decode(ends, special_tokens=self._reads_special)
        pairs = zip(completions, tails, strict=True)
        return [any(text in tail for text in self.texts) and self._counts(ids, tail) for ids, tail in pairs]

    def _counts(self, ids: Sequence[int], tail: str) -> bool:
        """Return whether a stop string at the end of a completion is not part of the white space at its beginning.

        Args:
            tail: the end of the completion, which has the stop string.
        """
        if not self._skips_leading_space or any(text in tail.lstrip() for text in self.texts):
            return True
        if len(ids) <= self._num_tail_tokens:
            return False
        [whole] = self._tokens.decode([list(ids)], special_tokens=self._reads_special)
        return any(text in whole.lstrip() for text in self.texts)

    def cut(self, text: str, token_ids: Sequence[int], num_skipped: int = 0) -> tuple[str, bool]:
        """Return a completion up to its first stop string, and whether there is one.

        Args:
            text: the completion without special tokens.
            token_ids: what it is the text of.
            num_skipped: stop strings do not count in the text of this many tokens at the beginning.
        """
        if self._reads_special:  # they are not part of the completion before the stop string, either
            [whole] = self._tokens.decode([list(token_ids)], special_tokens=True)
            text = whole if text[:1].isspace() else whole.lstrip()
        begin = self._text_begin(text, token_ids[:num_skipped]) if num_skipped else 0
        if self._skips_leading_space:
            begin = max(begin, len(text) - len(text.lstrip()))
        end = min((at for stop in self.texts if (at := text.find(stop, begin)) >= 0), default=None)
        return self._special.sub("", text[:end]) if self._reads_special else text[:end], end is not None

    def _text_begin(self, text: str, skipped_ids: Sequence[int]) -> int:
        """Return where the text begins that follows some tokens."""
        [skipped] = self._tokens.decode([list(skipped_ids)], special_tokens=self._reads_special)
        skipped = skipped.rstrip("\N{REPLACEMENT CHARACTER}")  # the beginning of a character that ends later
        # An answer after reasoning has lost the white space before it.
        return len(skipped if text[:1].isspace() else skipped.lstrip())
