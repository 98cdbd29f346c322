"""The model's tokenizer: text to token ids and back. The only module that calls transformers' tokenizers."""

import hashlib
from collections.abc import Sequence
from typing import Any

from job.config import ModelConfig
from job.data.messages import Messages
from job.data.prompts import ChatTemplate
from job.errors import UsageError, first_line


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the tokenizer of a model.

    Raises:
        UsageError: it is missing, or cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # OSError, ValueError, KeyError, ... for a missing or unusual tokenizer
        raise UsageError(f"--model {config.model}: the tokenizer cannot be loaded: {first_line(error)}") from None


class Tokenizer:
    """Wraps a transformers tokenizer. Implements ``job.modes.mode.Tokens``."""

    def __init__(self, inner: Any) -> None:
        """Wrap a tokenizer, and turn off its own truncation and padding."""
        self.inner = inner
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

    def chat_template(self, chat: bool | None) -> ChatTemplate | None:
        """Return a function from messages to text; None if prompts are used unchanged.

        Args:
            chat: the user's choice; None means to use a template if there is one.

        Raises:
            UsageError: the user asked for a template, but the tokenizer has none.
        """
        if chat is False or (chat is None and not self.inner.chat_template):
            return None
        if not self.inner.chat_template:
            raise UsageError(
                "--chat was given, but the tokenizer has no chat template. Leave it out, or use a chat model."
            )

        def apply(messages: Messages) -> str:
            return str(self.inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

        return apply

    def check_policy(self, on_long_prompt: str) -> None:
        """Check that the tokenizer supports truncation, if ``on_long_prompt`` needs it.

        Raises:
            UsageError: it does not.
        """
        if on_long_prompt != "error" and not self.is_fast:
            raise UsageError(f"--on-long-prompt {on_long_prompt} needs a fast tokenizer; this model has none.")

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

    def encode_with_offsets(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and for each id its range of characters [start, end)."""
        encoded = self.inner(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of several lists of ids, without special tokens."""
        if self._backend is not None:
            return list(self._backend.decode_batch([list(of_one) for of_one in ids], skip_special_tokens=True))
        return list(self.inner.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def as_read(self, token_ids: Sequence[int]) -> str:
        """Return the text that the model reads, including special tokens."""
        return str(self.inner.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return the names of tokens in the vocabulary."""
        return [str(name) for name in self.inner.convert_ids_to_tokens(list(ids))]
