"""How the decoder of an encoder-decoder begins, and what it never writes: from its files, before weights are loaded.

The prompt goes to the encoder. The decoder starts with a token of its own, which a token may follow that the model's
files force: that of a language in translation, or the beginning of a sentence. An answer is what comes after them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from job.engine.model.naming import MODEL_CONFIG
from job.errors import UsageError

RELATIVE = frozenset({"longt5", "mt5", "switch_transformers", "t5", "umt5"})
"""``model_type`` of models whose positions are relative: they read texts longer than those of their training."""

TRAINED_LEN = 512
"""What those were trained with, where their configuration does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """What the files of an encoder-decoder say about its answers."""

    start_id: int
    forced_id: int | None = None
    """The token after it. None: the model chooses it."""
    never_ids: tuple[int, ...] = ()
    """Tokens that are never written: Marian would write padding."""
    num_beams: int = 1
    """With how many beams its authors search."""

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """The ids that an answer follows."""
        return (self.start_id,) if self.forced_id is None else (self.start_id, self.forced_id)


def decoder_of(name: str, config: Any, directory: Any) -> Decoder | None:
    """Return what is known about the decoder; None if the model is not an encoder-decoder.

    Args:
        name: the model's, for messages.
        config: transformers' configuration.
        directory: holds ``generation_config.json``, if there is one.

    Raises:
        UsageError: its files do not say how the decoder starts.
    """
    if not config.is_encoder_decoder:
        return None
    stored = _generation_config(directory)

    def value(key: str) -> Any:
        found = getattr(stored, key, None)
        return getattr(config, key, None) if found is None else found

    start_id = next(
        (idx for key in ("decoder_start_token_id", "bos_token_id") if (idx := value(key)) is not None), None
    )
    if not isinstance(start_id, int):
        raise UsageError(
            f"--model {name} ({config.model_type}) has no decoder_start_token_id, neither in config.json nor in "
            "generation_config.json: nothing says how its answers begin. Add it there."
        )
    forced_id, bad_words = value("forced_bos_token_id"), value("bad_words_ids") or []
    never_ids = [*(words[0] for words in bad_words if len(words) == 1), *(value("suppress_tokens") or [])]
    return Decoder(
        start_id=start_id,
        forced_id=forced_id if isinstance(forced_id, int) else None,
        never_ids=tuple(dict.fromkeys(never_ids)),
        num_beams=value("num_beams") or 1,
    )


def _generation_config(directory: Any) -> Any:
    """Return it as transformers reads it: older models have it in ``config.json``, of which ``AutoConfig`` drops it."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(directory)
    except OSError:
        return GenerationConfig.from_pretrained(directory, config_file_name=MODEL_CONFIG)


def trained_len(config: Any, known: int | None) -> int | None:
    """Return how long the texts of an encoder-decoder are by default, given the number that its configuration has."""
    return known or (TRAINED_LEN if config.model_type in RELATIVE else None)


def begin_ids(decoder: Decoder | None, asked: Sequence[int]) -> tuple[int, ...]:
    """Return what a row's answer follows: what it asks for, or what the model's files say; () without a decoder."""
    return tuple(asked) or (() if decoder is None else decoder.begin_ids)
