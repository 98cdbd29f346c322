"""Between text and token ids. The only part that knows the tokenizer.

``load_tokenizer`` reads it, ``chat_template_of`` gives the renderer its chat template, ``Tokenization`` encodes prompts
and decodes completions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from job.config import ModelConfig
from job.data.choices import Choices
from job.data.prompts import ChatTemplate, Messages
from job.errors import UsageError, first_line
from job.records import Completion, Generation, Prompt, Request, RowError

SPARE_TAIL_TOKENS = 4
"""Tokens more than a stop string has: for special tokens among them, and for what decoding does at a text's start."""


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


def chat_template_of(tokenizer: Any, chat: bool | None) -> ChatTemplate | None:
    """Return a function from messages to text, or None if prompts are used as they are.

    Args:
        chat: what the user asked; None means if there is a template.

    Raises:
        UsageError: asked for, but the tokenizer has none.
    """
    if chat is False or (chat is None and not tokenizer.chat_template):
        return None
    if not tokenizer.chat_template:
        raise UsageError("--chat was given, but the tokenizer has no chat template. Use --no-chat, or a chat model.")

    def apply(messages: Messages) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return apply


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a hash of all that decides how text becomes ids: the vocabulary, the rules, the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{rules}\0{tokenizer.chat_template}".encode()).hexdigest()[:16]


class Tokenization:
    """Encodes prompts into requests and decodes generations into completions."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat: bool,
        max_prompt_tokens: int,
        on_long_prompt: str,
        stop: Sequence[str] = (),
        choices: Choices | None = None,
    ) -> None:
        """Fix how prompts are encoded.

        Args:
            chat: whether prompts come from a chat template, which writes the special tokens itself.
            max_prompt_tokens: longer prompts follow ``on_long_prompt``.
            on_long_prompt: ``error``, ``truncate-left`` or ``truncate-right``.
            stop: texts that end a completion.
            choices: of which a completion is one, if there are any.
        """
        self._stop, self._choices = tuple(stop), choices
        # The last token completes the stop string, and each token but a special one is a byte of text or more.
        self._num_tail_tokens = max((len(text.encode()) for text in self._stop), default=0) + SPARE_TAIL_TOKENS
        self._tokenizer, self._add_special_tokens = tokenizer, not chat
        self._max_prompt_tokens, self._on_long_prompt = max_prompt_tokens, on_long_prompt
        # Rust's tokenizer under transformers': the same ids and text at three times the speed, whole batches at once.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    def encode(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Request | Completion]]:
        """Turn prompts into requests; one that cannot be a request becomes a finished row with its error.

        Returns:
            For each prompt, itself (cut, if it was cut) and what became of it.
        """
        encodable = [p for p in prompts if p.error is None and _is_unicode(p.text)]
        ids_of = dict(zip((p.row_idx for p in encodable), self._encode_texts(encodable), strict=True))
        return [self._to_request(prompt, ids_of.get(prompt.row_idx)) for prompt in prompts]

    def decode(self, generations: Sequence[Generation], prompts: Sequence[str | None]) -> list[Completion]:
        """Turn what the engine returned into output rows. ``prompts`` are the texts to write beside them."""
        texts = self._decode_texts([list(generation.token_ids) for generation in generations])
        return [
            self._to_completion(generation, prompt, text)
            for generation, prompt, text in zip(generations, prompts, texts, strict=True)
        ]

    def ends_text(self, completions: Sequence[Sequence[int]]) -> list[bool]:
        """Return for each completion's ids whether their last token has completed a stop string."""
        tails = self._decode_texts([list(ids[-self._num_tail_tokens :]) for ids in completions])
        return [any(text in tail for text in self._stop) for tail in tails]

    def calibrate(self, generations: Sequence[Generation]) -> None:
        """Take what choices scored after content-free prompts into account from now on."""
        assert self._choices is not None, "only choices are calibrated"
        self._choices = self._choices.calibrated([generation.choice_logprobs or () for generation in generations])

    def num_tokens(self, prompt: Prompt) -> int:
        """Return the length of a prompt as it was rendered, whatever its limit is."""
        return len(self._encode_texts([prompt])[0])

    def as_read(self, token_ids: Sequence[int]) -> str:
        """Return ids as the text that the model reads, special tokens included."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def names(self, token_ids: Sequence[int]) -> list[str]:
        """Return tokens as the vocabulary calls them."""
        return [str(name) for name in self._tokenizer.convert_ids_to_tokens(list(token_ids))]

    def _to_completion(self, generation: Generation, prompt: str | None, text: str) -> Completion:
        if self._choices is not None and generation.choice_logprobs is not None:
            return _to_choice(generation, generation.choice_logprobs, self._choices, prompt)
        end = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=None)
        logprobs = generation.logprobs
        return Completion(
            row_idx=generation.request.row_idx,
            sample_idx=generation.request.sample_idx,
            prompt=prompt,
            completion=None if generation.error else text[:end],
            finish_reason=generation.finish_reason if end is None else "stop",
            num_prompt_tokens=len(generation.request.prompt_ids),
            num_completion_tokens=len(generation.token_ids),
            error=None if generation.error is None else str(generation.error),
            token_ids=None if logprobs is None else list(generation.token_ids),
            token_logprobs=logprobs,
            cumulative_logprob=None if logprobs is None else sum(logprobs),
        )

    def _encode_texts(self, prompts: list[Prompt]) -> list[list[int]]:
        if not prompts:
            return []
        texts = [str(prompt.text) for prompt in prompts]
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=self._add_special_tokens)
            return [encoding.ids for encoding in encodings]
        return list(self._tokenizer(texts, add_special_tokens=self._add_special_tokens, verbose=False)["input_ids"])

    def _decode_texts(self, ids: list[list[int]]) -> list[str]:
        if self._backend is not None:
            return list(self._backend.decode_batch(ids, skip_special_tokens=True))
        return list(self._tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _to_request(self, prompt: Prompt, ids: list[int] | None) -> tuple[Prompt, Request | Completion]:
        if prompt.error is not None:
            return prompt, failed(prompt, prompt.error)
        if ids is None:
            detail = "the prompt holds a lone surrogate, which is no character"
            return prompt, failed(prompt, RowError("invalid_unicode", detail))
        if not ids:
            return prompt, failed(prompt, RowError("empty_prompt", "the prompt has no tokens"))
        if len(ids) > self._max_prompt_tokens:
            cut = None if self._on_long_prompt == "error" else self._truncate(prompt)
            if cut is None:
                detail = f"{len(ids)} tokens, the limit is {self._max_prompt_tokens}"
                return prompt, failed(prompt, RowError("prompt_too_long", detail), num_prompt_tokens=len(ids))
            prompt, ids = cut
        return prompt, Request(row_idx=prompt.row_idx, sample_idx=0, prompt_ids=ids)

    def _truncate(self, prompt: Prompt) -> tuple[Prompt, list[int]] | None:
        """Cut the row's own content, at a token's border, until the prompt fits. None if cutting all is not enough.

        The text is cut and tokenized again, not the ids: so special tokens and the chat template stay whole. Tokens
        may join anew at the cut, hence the repetition.
        """
        text, (start, end) = str(prompt.text), prompt.content_span or (0, 0)
        while True:
            encoded = self._tokenizer(
                text, add_special_tokens=self._add_special_tokens, return_offsets_mapping=True, verbose=False
            )
            excess = len(encoded["input_ids"]) - self._max_prompt_tokens
            if excess <= 0:
                return replace(prompt, text=text, content_span=(start, end)), list(encoded["input_ids"])
            inside = [(a, b) for a, b in encoded["offset_mapping"] if start <= a < b <= end]
            if excess >= len(inside):
                return None
            # The last token that has to go, with the whole character that it may be only a byte of.
            if self._on_long_prompt == "truncate-left":
                cut = inside[excess - 1][1]
                text, end = text[:start] + text[cut:], end - (cut - start)
            else:
                cut = inside[-excess][0]
                text, end = text[:cut] + text[end:], cut
            if start == end:
                return None


def _to_choice(generation: Generation, logprobs: Sequence[float], choices: Choices, prompt: str | None) -> Completion:
    label = choices.label(logprobs, generation.request.key)
    return Completion(
        row_idx=generation.request.row_idx,
        sample_idx=generation.request.sample_idx,
        prompt=prompt,
        completion=label.text,
        finish_reason=generation.finish_reason,
        num_prompt_tokens=len(generation.request.prompt_ids),
        num_completion_tokens=label.num_tokens,
        error=None,
        choice_logprobs=list(logprobs),
        choice_probs=list(label.probs),
        choice_margin=label.margin,
    )


def failed(prompt: Prompt, error: RowError, num_prompt_tokens: int = 0) -> Completion:
    """Return the output row of a prompt that never reached the engine."""
    return Completion(
        row_idx=prompt.row_idx,
        sample_idx=0,
        prompt=None if prompt.text is None else prompt.text.encode("utf-8", "backslashreplace").decode(),
        completion=None,
        finish_reason=None,
        num_prompt_tokens=num_prompt_tokens,
        num_completion_tokens=0,
        error=str(error).encode("utf-8", "backslashreplace").decode(),
    )


def _is_unicode(text: str | None) -> bool:
    """Whether the text can be written as UTF-8; a lone surrogate from JSON cannot."""
    try:
        str(text).encode()
        return True
    except UnicodeEncodeError:
        return False
