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
        UsageError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ... for a missing or odd tokenizer
        raise UsageError(f"--model {config.model}: the tokenizer cannot be loaded: {first_line(error)}") from None


class Tokenizer:
    """Wraps a tokenizer of transformers. Implements ``job.modes.mode.Tokens``."""

    def __init__(self, inner: Any) -> None:
        """Wrap it."""
        self.inner = inner
        # Rust's tokenizer under transformers': the same ids and text at three times the speed, whole batches at once.
        self._backend = getattr(inner, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    @property
    def is_fast(self) -> bool:
        """Whether it can say which characters a token stands for."""
        return bool(self.inner.is_fast)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids that it says end a text."""
        return () if self.inner.eos_token_id is None else (self.inner.eos_token_id,)

    @property
    def digest(self) -> str:
        """A hash of all that decides how text becomes ids: the vocabulary, the rules, the chat template."""
        rules = self._backend.to_str() if self._backend is not None else repr(sorted(self.inner.get_vocab().items()))
        return hashlib.sha256(f"{rules}\0{self.inner.chat_template}".encode()).hexdigest()[:16]

    def chat_template(self, chat: bool | None) -> ChatTemplate | None:
        """Return a function from messages to text, or None if prompts are used as they are.

        Args:
            chat: what the user asked; None means if there is a template.

        Raises:
            UsageError: asked for, but the tokenizer has none.
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
        """Check that prompts can be cut, if they are to be.

        Raises:
            UsageError: they cannot.
        """
        if on_long_prompt != "error" and not self.is_fast:
            raise UsageError(f"--on-long-prompt {on_long_prompt} needs a fast tokenizer; this model has none.")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens at its ends."""
        return list(self.inner(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_prompts(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Return the ids of several texts.

        Args:
            add_special_tokens: whether to add those that the tokenizer puts at a text's ends.
        """
        if not texts:
            return []
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]
        return list(self.inner(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"])

    def encode_with_offsets(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text and the characters [start, end) that each stands for."""
        encoded = self.inner(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Return texts, special tokens left out."""
        if self._backend is not None:
            return list(self._backend.decode_batch([list(of_one) for of_one in ids], skip_special_tokens=True))
        return list(self.inner.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def as_read(self, token_ids: Sequence[int]) -> str:
        """Return ids as the text that the model reads, special tokens included."""
        return str(self.inner.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def names(self, ids: Sequence[int]) -> list[str]:
        """Return tokens as the vocabulary calls them."""
        return [str(name) for name in self.inner.convert_ids_to_tokens(list(ids))]
