"""Special tokens in the text of rows: a text with ``<|im_end|>`` would end the user's turn and could forge others.

To have them read as plain text, each is replaced by a single private character before templates see the row, and put
back into the prompt afterwards. So its place is known, whatever the templates do with the text around it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from job.records import RowRejected

FIRST_STAND_IN = 0x100000
"""The first of the characters that stand for special tokens, in a plane of Unicode for private use."""

STAND_INS = re.compile("[\U00100000-\U0010ffff]")


class SpecialTokens:
    """Treats the special tokens of one tokenizer in the text of rows."""

    def __init__(self, tokens: Sequence[str], policy: str) -> None:
        """Set what to do with them.

        Args:
            policy: ``allow``, ``escape`` or ``error``.
        """
        self._policy, self._tokens = policy, list(tokens)
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def find(self, value: Any) -> str | None:
        """Return the first special token in the texts of a value; None if there is none."""
        if isinstance(value, str):
            found = self._pattern.search(value)
            return found[0] if found else None
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        return next((token for token in map(self.find, inner) if token), None)

    def checked(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row's values with stand-ins for the special tokens that are to be read as plain text.

        Raises:
            RowRejected: the policy allows none, and there is one.
        """
        if self._policy == "allow" or (token := self.find(values)) is None:
            return values
        if self._policy == "error":
            raise RowRejected("special_token", f"the text contains {token}, a special token of the model")
        if _any_stand_in(values):
            raise RowRejected("special_token", "the text contains characters of Unicode's last private plane")
        replaced: Mapping[str, Any] = self._replaced(values)
        return replaced

    def restored(self, text: str) -> tuple[str, Sequence[tuple[int, int]]]:
        """Put the special tokens back into a text, and return where they are."""
        if self._policy != "escape" or STAND_INS.search(text) is None:
            return text, ()
        parts: list[str] = []
        spans: list[tuple[int, int]] = []
        length = end = 0
        for found in STAND_INS.finditer(text):
            token = self._tokens[ord(found[0]) - FIRST_STAND_IN]
            parts += [text[end : found.start()], token]
            start = length + found.start() - end
            length = start + len(token)
            spans.append((start, length))
            end = found.end()
        return "".join([*parts, text[end:]]), spans

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(lambda found: chr(FIRST_STAND_IN + self._tokens.index(found[0])), value)
        if isinstance(value, Mapping):
            return {key: self._replaced(inner) for key, inner in value.items()}
        return [self._replaced(inner) for inner in value] if isinstance(value, list | tuple) else value


def _any_stand_in(value: Any) -> bool:
    if isinstance(value, str):
        return STAND_INS.search(value) is not None
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(map(_any_stand_in, inner))


NO_SPECIAL_TOKENS = SpecialTokens((), "allow")
