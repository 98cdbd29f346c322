"""From prompts to requests: prompts that are too long are truncated or become errors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from job.data.tokenizer import Span, Tokenizer
from job.records import Completion, Prompt, Request, RowError, RowRejected
from job.tasks import Task

TaskOf = Callable[[Mapping[str, Any]], Task]
"""Returns what to ask the engine for a row, from its values in the columns that modes read. Raises ``RowRejected``."""

RoomOf = Callable[[Task], int]
"""Returns how many tokens the prompt of a row may have at most. Raises ``RowRejected`` if its task leaves none."""

Given = Callable[[Request, Prompt], Request]
"""Returns the request for a row, from the one with its prompt and its task. Raises ``RowRejected``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt with its request or its error."""

    prompt: Prompt
    """The prompt as the model reads it, after truncation."""
    request: Request | None
    """The request for sample 0; None if there is an ``error``."""
    error: RowError | None = None
    num_tokens: int = 0
    """The number of tokens before truncation; 0 if it is unknown."""

    def completion(self, sample_idx: int) -> Completion:
        """Return the output row of a prompt that cannot be a request."""
        assert self.error is not None, "the engine completes requests"
        text = self.prompt.text
        return Completion(
            row_idx=self.prompt.row_idx,
            sample_idx=sample_idx,
            prompt=None if text is None else _printable(text),
            completion=None,
            finish_reason=None,
            num_prompt_tokens=self.num_tokens,
            num_completion_tokens=0,
            error=replace(self.error, detail=_printable(self.error.detail)),
        )


class Tokenization:
    """Encodes prompts into requests."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        task_of: TaskOf,
        *,
        chat: bool,
        max_prompt_tokens: int | RoomOf,
        on_long_prompt: str,
        vocab_size: int | None = None,
        given: Given = lambda request, prompt: request,
        decoder_ids: tuple[int, ...] = (),
    ) -> None:
        """Set how prompts are encoded.

        Args:
            task_of: what to ask the engine for each of them.
            chat: whether prompts come from a chat template, which adds the special tokens itself.
            max_prompt_tokens: longer prompts are treated as ``on_long_prompt`` says. One number, or from the task.
            on_long_prompt: ``error``, ``truncate-left`` or ``truncate-right``.
            vocab_size: of the model: how many ids it knows. Some tokenizers have more.
            given: completes a request.
            decoder_ids: see ``Request``.
        """
        self._given, self._decoder_ids = given, decoder_ids
        self._tokenizer, self._task_of, self._add_special_tokens = tokenizer, task_of, not chat
        self._room_of = max_prompt_tokens if callable(max_prompt_tokens) else lambda task: max_prompt_tokens
        self._on_long_prompt = on_long_prompt
        self._num_known_ids = vocab_size if vocab_size and vocab_size < tokenizer.vocab_size else None

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Turn prompts into requests; those that cannot become one get an error."""
        encodable = [p for p in prompts if p.error is None and _is_unicode(p.text)]
        ids_of = dict(zip((p.row_idx for p in encodable), self._encode(encodable), strict=True))
        return [self._to_request(prompt, ids_of.get(prompt.row_idx)) for prompt in prompts]

    def num_tokens(self, prompt: Prompt) -> int:
        """Return the number of tokens of a prompt, before truncation."""
        return len(self._encode([prompt])[0])

    def _encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        plain = [prompt for prompt in prompts if not prompt.literal_spans]
        all_ids = self._tokenizer.encode_prompts(
            [str(prompt.text) for prompt in plain], add_special_tokens=self._add_special_tokens
        )
        if len(plain) == len(prompts):
            return all_ids
        of_plain = iter(all_ids)
        return [self._encode_literally(prompt)[0] if prompt.literal_spans else next(of_plain) for prompt in prompts]

    def _encode_literally(self, prompt: Prompt) -> tuple[list[int], list[Span]]:
        """Encode a prompt of which some special tokens are plain text."""
        return self._tokenizer.encode_with_offsets(
            str(prompt.text), add_special_tokens=self._add_special_tokens, literal=prompt.literal_spans
        )

    def _to_request(self, prompt: Prompt, ids: list[int] | None) -> EncodedPrompt:
        if prompt.error is not None:
            return EncodedPrompt(prompt=prompt, request=None, error=prompt.error)
        if ids is None:
            error = RowError("invalid_unicode", "the prompt contains a lone surrogate, which is not a character")
            return EncodedPrompt(prompt=prompt, request=None, error=error)
        if not ids:
            return EncodedPrompt(
                prompt=prompt, request=None, error=RowError("empty_prompt", "the prompt has no tokens")
            )
        num_tokens = len(ids)
        try:
            task = self._task_of(prompt.values)
            most = self._room_of(task)
        except RowRejected as rejected:
            return EncodedPrompt(prompt=prompt, request=None, error=rejected.row_error, num_tokens=num_tokens)
        if num_tokens > most:
            cut = None if self._on_long_prompt == "error" else self._truncate(prompt, most)
            if cut is None:
                detail = f"{num_tokens} tokens, the limit is {most}"
                error = RowError("prompt_too_long", detail)
                return EncodedPrompt(prompt=prompt, request=None, error=error, num_tokens=num_tokens)
            prompt, ids = cut
        try:
            begun = Request(
                row_idx=prompt.row_idx,
                sample_idx=0,
                prompt_ids=ids,
                task=task,
                decoder_ids=self._decoder_ids,
                num_cut_tokens=max(0, num_tokens - len(ids)),
            )
            request = self._given(begun, prompt)
            self._check_known(request.given_ids)
        except RowRejected as rejected:
            return EncodedPrompt(prompt=prompt, request=None, error=rejected.row_error, num_tokens=num_tokens)
        return EncodedPrompt(prompt=prompt, request=request, num_tokens=num_tokens)

    def _check_known(self, ids: Sequence[int]) -> None:
        """Check that the model knows all tokens.

        Raises:
            RowRejected: it does not.
        """
        if self._num_known_ids is not None and (largest := max(ids)) >= self._num_known_ids:
            [name] = self._tokenizer.names([largest])
            raise RowRejected(
                "unknown_token", f"{name} is token {largest}; the model has {self._num_known_ids:,} tokens"
            )

    def _truncate(self, prompt: Prompt, most: int) -> tuple[Prompt, list[int]] | None:
        """Cut the row's own content, at a token boundary, until the prompt has at most ``most`` tokens. None if cutting
        all is not enough.

        The text is cut and tokenized again, not the ids, so special tokens and the chat template stay intact. Tokens
        may merge differently at the cut, so this is repeated until the prompt fits.
        """
        start, end = prompt.content_span or (0, 0)
        while True:
            text = str(prompt.text)
            ids, offsets = self._encode_literally(prompt)
            excess = len(ids) - most
            if excess <= 0:
                return prompt, ids
            inside = [(a, b) for a, b in offsets if start <= a < b <= end]
            if excess >= len(inside):
                return None
            # Cut up to the last token to remove. It may be one byte of a character: then the whole character is cut.
            if self._on_long_prompt == "truncate-left":
                cut = (start, inside[excess - 1][1])
            else:
                cut = (inside[-excess][0], end)
            end -= cut[1] - cut[0]
            if start == end:
                return None
            prompt = replace(
                prompt,
                text=text[: cut[0]] + text[cut[1] :],
                content_span=(start, end),
                literal_spans=_without(prompt.literal_spans, cut),
            )


def _without(spans: Sequence[Span], cut: Span) -> list[Span]:
    """Return where spans of a text are once a part of it is cut out. What is left of a cut span is not a special token.

    >>> _without([(0, 2), (4, 8), (9, 11)], (3, 6))
    [(0, 2), (6, 8)]
    """
    start, end = cut
    kept = [span for span in spans if span[1] <= start or span[0] >= end]
    return [span if span[1] <= start else (span[0] - (end - start), span[1] - (end - start)) for span in kept]


def _printable(text: str) -> str:
    """Return a text that can be encoded as UTF-8: lone surrogates become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_unicode(text: str | None) -> bool:
    """Whether the text can be encoded as UTF-8; a lone surrogate from JSON cannot."""
    try:
        str(text).encode()
        return True
    except UnicodeEncodeError:
        return False
