"""The model's tokenizer: text to token ids and back. The only module that calls transformers' tokenizers."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from job.data.chat_template import ModelChatTemplate
from job.errors import UsageError
from job.remote.model_code import code_options, why_unreadable
from job.remote.model_files import ModelFiles

Span = tuple[int, int]
"""A range of characters [start, end)."""

ALIKE_DECODERS = frozenset({"ByteLevel", "Replace", "ByteFallback", "Fuse"})
"""Steps of decoding that do not treat the first token in another way."""


SENTENCEPIECE_FILES = ("source.spm", "spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")
"""What only the package sentencepiece reads, unless there is a ``tokenizer.json``, too."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", *SENTENCEPIECE_FILES)


def load_tokenizer(files: ModelFiles, *, trust_remote_code: bool) -> Any:
    """Load the tokenizer of a model, whose small files are there already.

    Raises:
        UsageError: it is missing, or cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(files.directory, **code_options(files, trust_remote_code))
    except Exception as error:  # OSError, ValueError, KeyError, ... for a missing or unusual tokenizer
        if not any(files.has(name) for name in TOKENIZER_FILES):
            raise UsageError(
                f"--model {files.name} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}. "
                "Copy the tokenizer's files from where the model comes from."
            ) from None
        if _lacks_sentencepiece(files):
            raise UsageError(
                f"--model {files.name}: its tokenizer needs the package sentencepiece, which is not installed. Run "
                "pip install sentencepiece."
            ) from None
        raise UsageError(
            f"--model {files.name}: the tokenizer cannot be loaded: {why_unreadable(files, error)}"
        ) from None


def _lacks_sentencepiece(files: ModelFiles) -> bool:
    """Whether a missing package is why the tokenizer cannot be loaded: transformers may name another one."""
    has_pieces = any(files.has(name) for name in SENTENCEPIECE_FILES) and not files.has("tokenizer.json")
    return has_pieces and find_spec("sentencepiece") is None


class Tokenizer:
    """Wraps a transformers tokenizer. Implements ``job.modes.mode.Tokens``."""

    def __init__(self, inner: Any, *, follows_prompt: bool = True, chat_template: str | None = None) -> None:
        """Wrap a tokenizer, and turn off its own truncation and padding.

        Args:
            chat_template: takes the place of its own, if given.
            follows_prompt: whether ``decode`` returns text as it follows a prompt. Many tokenizers (SentencePiece)
                drop the space before the first word of a text; a completion is not the start of a text.
        """
        self.inner = inner
        if chat_template is not None:
            inner.chat_template = chat_template
        self._follows_prompt = follows_prompt
        # The Rust tokenizer inside the transformers one: same ids and text, three times as fast, in whole batches.
        self._backend = getattr(inner, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    @property
    def is_fast(self) -> bool:
        """Whether it can map tokens to characters."""
        return bool(self.inner.is_fast)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text according to the tokenizer."""
        return () if self.inner.eos_token_id is None else (self.inner.eos_token_id,)

    @property
    def digest(self) -> str:
        """A hash of everything that affects how text becomes ids: the vocabulary, the rules, the chat template."""
        rules = self._backend.to_str() if self._backend is not None else repr(sorted(self.inner.get_vocab().items()))
        return hashlib.sha256(f"{rules}\0{self.inner.chat_template}".encode()).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max([int(self.inner.vocab_size), *(int(idx) + 1 for idx in self.inner.added_tokens_decoder)])

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The tokens that are not text, such as the end of a sequence or of a turn, with their ids."""
        added = self.inner.added_tokens_decoder.items()
        return {str(token.content): int(idx) for idx, token in added if token.special and token.content}

    def chat_template(self, chat: bool | None) -> ModelChatTemplate | None:
        """Return the chat template; None if prompts are used unchanged.

        Args:
            chat: the user's choice; None means to use a template if there is one.

        Raises:
            UsageError: the user asked for a template, but the tokenizer has none, has several, or it is not one.
        """
        if chat is False or (chat is None and not self.inner.chat_template):
            return None
        if not self.inner.chat_template:
            raise UsageError(
                "--chat was given, but the tokenizer has no chat template. Leave it out, give one with "
                "--chat-template, or use a chat model."
            )
        return ModelChatTemplate(self.inner)

    def check_policy(self, on_long_prompt: str) -> None:
        """Check that the tokenizer supports truncation, if ``on_long_prompt`` needs it.

        Raises:
            UsageError: it does not.
        """
        if on_long_prompt != "error" and not self.is_fast:
            raise UsageError(f"--on-long-prompt {on_long_prompt} needs a fast tokenizer; this model has none.")

    def check_escaping(self) -> None:
        """Check that special tokens can be read as plain text.

        Raises:
            UsageError: the tokenizer makes one of them of its plain text, too.
        """
        for token, idx in self.special_tokens.items():
            if idx in self._encode_following(token, is_literal=True)[0]:
                raise UsageError(
                    "--special-tokens-in-text escape does not work with this tokenizer: it reads even the plain text "
                    f"{token} as the token. Use error."
                )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without adding special tokens."""
        return list(self.inner(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_prompts(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Return the ids of several texts.

        Args:
            add_special_tokens: whether to add the special tokens that begin and end a text.
        """
        if not texts:
            return []
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]
        return list(self.inner(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def encode_with_offsets(
        self, text: str, *, add_special_tokens: bool, literal: Sequence[Span] = ()
    ) -> tuple[list[int], list[Span]]:
        """Return the ids of a text, and for each id its range of characters.

        Args:
            literal: where the text has special tokens that are to be read as plain text, in order.
        """
        if not literal:
            return self._encode_piece(text, add_special_tokens)
        ids, offsets = self._encode_piece(text[: literal[0][0]], add_special_tokens)
        for (start, end), (next_start, _) in zip(literal, [*literal[1:], (len(text), 0)], strict=True):
            for piece_start, piece_end, is_literal in ((start, end, True), (end, next_start, False)):
                piece = text[piece_start:piece_end]
                more_ids, more_offsets = self._encode_following(piece, is_literal=is_literal)
                ids += more_ids
                offsets += [(piece_start + a, piece_start + b) for a, b in more_offsets]
        return ids, offsets

    def _encode_following(self, piece: str, *, is_literal: bool) -> tuple[list[int], list[Span]]:
        """Encode text that follows other text: many tokenizers (SentencePiece) put a space before one that does not."""
        anchor_ids, _ = self._encode_piece("\n", add_special_tokens=False)
        ids, offsets = self._encode_piece("\n" + piece, add_special_tokens=False, is_literal=is_literal)
        num_anchor = len(anchor_ids)
        if not piece or ids[:num_anchor] != anchor_ids:
            return self._encode_piece(piece, add_special_tokens=False, is_literal=is_literal) if piece else ([], [])
        return ids[num_anchor:], [(max(0, a - 1), max(0, b - 1)) for a, b in offsets[num_anchor:]]

    def _encode_piece(
        self, text: str, add_special_tokens: bool, *, is_literal: bool = False
    ) -> tuple[list[int], list[Span]]:
        if self._backend is None:  # a slow tokenizer knows no offsets
            options = {"add_special_tokens": add_special_tokens, "split_special_tokens": is_literal, "verbose": False}
            return list(self.inner(text, **options)["input_ids"]), []
        self._backend.encode_special_tokens = is_literal
        try:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        finally:
            self._backend.encode_special_tokens = False
        return list(encoding.ids), list(encoding.offsets)

    def decode(self, ids: Sequence[Sequence[int]], *, special_tokens: bool = False) -> list[str]:
        """Return the texts of several lists of ids, as they follow a prompt.

        Args:
            special_tokens: whether special tokens are part of the text.
        """
        if not self._anchor:
            return self._decode(ids, special_tokens=special_tokens)
        anchor_ids, anchor = self._anchor
        texts = self._decode([[*anchor_ids, *of_one] for of_one in ids], special_tokens=special_tokens)
        return [text.removeprefix(anchor) for text in texts]

    @cached_property
    def _anchor(self) -> tuple[list[int], str] | None:
        """The ids and the text of a word to decode before a completion; None if it would change nothing."""
        if not self._follows_prompt or _is_alike_everywhere(self._backend):
            return None
        for word in ("a", "0", "."):
            ids = self.encode(word)
            [text] = self._decode([ids], special_tokens=False)
            if text and self._decode([[*ids, *ids]], special_tokens=False)[0].startswith(text):
                return ids, text
        return None

    def _decode(self, ids: Sequence[Sequence[int]], *, special_tokens: bool) -> list[str]:
        if self._backend is not None:
            return list(
                self._backend.decode_batch([list(of_one) for of_one in ids], skip_special_tokens=not special_tokens)
            )
        return list(
            self.inner.batch_decode(ids, skip_special_tokens=not special_tokens, clean_up_tokenization_spaces=False)
        )

    def as_read(self, token_ids: Sequence[int]) -> str:
        """Return the text that the model reads, including special tokens."""
        return str(self.inner.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def token_bytes(self) -> Callable[[int], bytes]:
        """Return what gives the text of a single token in UTF-8. Some tokens are a part of a character."""
        added = {int(idx): str(token.content).encode() for idx, token in self.inner.added_tokens_decoder.items()}
        readable = None
        if self.is_fast and self.inner.eos_token_id is not None:
            from llguidance.hf import from_tokenizer

            with contextlib.suppress(Exception):  # it reads most tokenizers, and raises exceptions of any type
                readable = from_tokenizer(self.inner, slices=[])

        def of(token: int) -> bytes:
            if token in added:
                return added[token]
            return self.as_read([token]).encode() if readable is None else bytes(readable.decode_bytes([token]))

        return of

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the names of tokens in the vocabulary."""
        return [str(name) for name in self.inner.convert_ids_to_tokens(list(ids))]


def _is_alike_everywhere(backend: Any) -> bool:
    """Whether a Rust tokenizer decodes a token in the same way at every position."""
    if backend is None or backend.decoder is None:
        return False
    state = json.loads(backend.decoder.__getstate__())
    return all(decoder.get("type") in ALIKE_DECODERS for decoder in state.get("decoders", [state]))
