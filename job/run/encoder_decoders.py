"""What an encoder-decoder changes in a run: the options that it cannot serve, the languages, and what is said of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from job.config import RunConfig
from job.config.prompt import CHAT_OPTIONS
from job.data.languages import languages_of, read_as, target_id
from job.data.tokenizer import Tokenizer
from job.engine.model.info import ModelInfo
from job.errors import UsageError
from job.wording import flag

NO_CHAT = ("chat", *CHAT_OPTIONS, "examples", "prefill")
"""Options for prompts that an answer continues, or for conversations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """How the answers of a run begin."""

    decoder_ids: tuple[int, ...] = ()
    """See ``Request``."""
    notes: tuple[str, ...] = ()


def as_texts(config: RunConfig, info: ModelInfo) -> RunConfig:
    """Return the configuration of a run whose prompts an encoder reads: texts, not conversations.

    Raises:
        UsageError: the options ask for what an encoder-decoder does not do, or for languages of another model.
    """
    if info.decoder is None:
        _refuse_languages(config, info)
        return config
    what = f"--model {config.model.model} is an encoder-decoder ({info.config.model_type})"
    given = [name for name in NO_CHAT if getattr(config.prompt, name)]
    if given:
        raise UsageError(
            f"{flag(given[0])} does not work here: {what}, which reads a text and writes another. Leave it out, and "
            "say what to do with --prompt-template."
        )
    modes = [mode for mode in config.active_modes if not mode.serves_encoder_decoders]
    if modes:
        raise UsageError(f"{modes[0].flag} does not work here: {what}. Use a causal model, or leave it out.")
    return replace(config, prompt=replace(config.prompt, chat=False))


def _refuse_languages(config: RunConfig, info: ModelInfo) -> None:
    for name in ("target_language", "source_language"):
        if getattr(config.prompt, name) is not None:
            raise UsageError(
                f"{flag(name)} was given, but --model {config.model.model} ({info.config.model_type}) is not an "
                "encoder-decoder. Leave it out, and name the language in the prompt."
            )


def begin(config: RunConfig, info: ModelInfo, tokenizer: Tokenizer) -> Begun:
    """Return how the answers of a run begin, and let its tokenizer mark the language of prompts.

    Raises:
        UsageError: the tokenizer does not know a language.
    """
    decoder, prompt = info.decoder, config.prompt
    if decoder is None:
        return Begun()
    if prompt.source_language is not None:
        read_as(tokenizer, prompt.source_language)
    ids: tuple[int, ...] = ()
    if prompt.target_language is not None:
        token = target_id(tokenizer, prompt.target_language)
        # The first mBART models start with the language itself.
        starts = decoder.start_id in languages_of(tokenizer).values()
        ids = (token,) if starts else (decoder.start_id, token)
    return Begun(decoder_ids=ids, notes=tuple(_notes(config, info, tokenizer)))


def _notes(config: RunConfig, info: ModelInfo, tokenizer: Tokenizer) -> Iterator[str]:
    decoder, prompt = info.decoder, config.prompt
    assert decoder is not None
    languages = languages_of(tokenizer)
    if not languages:
        return
    if prompt.target_language is None and decoder.forced_id is None and decoder.start_id not in languages.values():
        yield f"the model chooses the language of its answers; set --target-language, such as {min(languages)}"
    source = getattr(tokenizer.inner, "src_lang", None)
    if prompt.source_language is None and source is not None:
        yield f"prompts are read as {source}; set --source-language for another language"
