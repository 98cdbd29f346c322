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

UNUSED = {
    "repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "num_beam_groups": 1,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "begin_suppress_tokens": None,
}
"""Settings of generation_config.json that change which tokens ``generate`` chooses, and the values that do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """What the files of an encoder-decoder say about its answers."""

    start_id: int
    forced_id: int | None = None
    """The token after it. None: the model chooses it."""
    never_ids: tuple[int, ...] = ()
    """Tokens that are never written: Marian would write padding."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of several tokens that are never written."""
    forced_eos_id: int | None = None
    """The token that ends an answer at its limit, in place of what the model would write there."""
    num_beams: int = 1
    """With how many beams its authors search."""
    length_penalty: float = 1.0
    early_stopping: str = "false"
    """See ``BeamSearch``."""
    no_repeat_ngram_size: int = 0
    min_len: int = 0
    max_len: int | None = None
    """How many tokens its authors let an answer have, with those that it follows."""
    unused: tuple[str, ...] = ()
    """What else its files say about how tokens are chosen, and nothing here does."""

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
    bad_words = [tuple(words) for words in value("bad_words_ids") or []]
    never_ids = [*(words[0] for words in bad_words if len(words) == 1), *(value("suppress_tokens") or [])]
    stopping = value("early_stopping")
    return Decoder(
        start_id=start_id,
        forced_id=_first_id(value("forced_bos_token_id")),
        never_ids=tuple(dict.fromkeys(never_ids)),
        bad_words=tuple(words for words in bad_words if len(words) > 1),
        forced_eos_id=_first_id(value("forced_eos_token_id")),
        num_beams=value("num_beams") or 1,
        length_penalty=1.0 if value("length_penalty") is None else float(value("length_penalty")),
        early_stopping="never" if stopping == "never" else str(bool(stopping)).lower(),
        no_repeat_ngram_size=value("no_repeat_ngram_size") or 0,
        min_len=_length(value("min_length"), value("min_new_tokens")) or 0,
        max_len=_length(value("max_length"), value("max_new_tokens")),
        unused=tuple(name for name, neutral in UNUSED.items() if value(name) not in (None, neutral)),
    )


def _first_id(value: Any) -> int | None:
    """Return a token that the files name alone, or first in a list."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None


def _length(total: int | None, new: int | None) -> int | None:
    """Return a limit that counts the start token: transformers has limits with and without it, and the latter win."""
    return total if new is None else new + 1


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
