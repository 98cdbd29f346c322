"""How an encoder-decoder chooses tokens where the options leave that to its files, and what beams do not go with.

``generate`` of transformers follows ``generation_config.json``: how many beams there are, how long completions are at
least, what may not be repeated. For encoder-decoders a run does, too, because their published results are those of a
beam search. Options win. (What the file of any model says about draws is never used.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from job.config import RunConfig, SamplingConfig
from job.engine.model.decoder import Decoder, begin_ids
from job.engine.model.info import ModelInfo
from job.errors import UsageError
from job.wording import flag, listed


def with_search(config: RunConfig, info: ModelInfo, decoder_ids: Sequence[int]) -> tuple[RunConfig, tuple[str, ...]]:
    """Return the configuration with what the model's files say, and notes on that.

    Args:
        decoder_ids: what the decoder begins with, if the options say it.

    Raises:
        UsageError: the options ask for beams together with something that does not go with them, or of a causal model.
    """
    sampling, decoder = config.sampling, info.decoder
    if decoder is None:
        _refuse_beams(config, info)
        size = sampling.no_repeat_ngram_size or None
        return replace(config, sampling=replace(sampling, num_beams=None, no_repeat_ngram_size=size)), ()
    num_beams = decoder.num_beams if sampling.num_beams is None else sampling.num_beams
    conflict = next(_conflicts(config), None) if num_beams > 1 else None
    notes = []
    if conflict is not None:
        if sampling.num_beams is not None:
            raise UsageError(
                f"{conflict} and --num-beams {num_beams} were given together, but a beam search has one completion for "
                f"each row, the best, as it is. Leave out {conflict}, or use --num-beams 1."
            )
        notes.append(
            f"the model's generation_config.json asks for {num_beams} beams, which do not go with {conflict}: there is "
            "no beam search"
        )
        num_beams = 1
    settled = _with_beams(sampling, decoder, num_beams)
    if not any(mode.decides_end for mode in config.active_modes):
        settled = _with_limits(settled, decoder, config, len(begin_ids(decoder, decoder_ids)))
    settled = replace(settled, bad_token_ids=decoder.bad_words)
    notes += _notes(sampling, settled, decoder, len(begin_ids(decoder, decoder_ids)))
    return replace(config, sampling=settled), tuple(notes)


def _refuse_beams(config: RunConfig, info: ModelInfo) -> None:
    sampling = config.sampling
    given = [name for name in ("length_penalty", "early_stopping") if getattr(sampling, name) is not None]
    if sampling.searches or given:
        name = "num_beams" if sampling.searches else given[0]
        raise UsageError(
            f"{flag(name)} {getattr(sampling, name)} is for encoder-decoders, and --model {config.model.model} "
            f"({info.config.model_type}) is a causal model, for which there is no beam search. Leave it out; for "
            "several completions of a row, use --num-samples with a --temperature."
        )


def _conflicts(config: RunConfig) -> Iterator[str]:
    """Yield the options that do not go with beams."""
    sampling = config.sampling
    given = {
        "temperature": sampling.temperature > 0,
        "num_samples": sampling.num_samples > 1,
        "stop": sampling.stop,
        "repetition_detection": sampling.repetition_detection,
    }
    yield from (flag(name) for name, is_given in given.items() if is_given)
    yield from (mode.flag for mode in config.active_modes if mode.given() and not mode.serves_beams)


def _with_beams(sampling: SamplingConfig, decoder: Decoder, num_beams: int) -> SamplingConfig:
    """Return the options with a number of beams, and what belongs to them."""
    if num_beams == 1:
        of_beams = ("length_penalty", "early_stopping")
        if (given := next((name for name in of_beams if getattr(sampling, name) is not None), None)) is not None:
            raise UsageError(f"{flag(given)} is for a beam search. Leave it out, or set --num-beams, for example to 4.")
        return replace(sampling, num_beams=1 if decoder.num_beams > 1 else None)
    power, stopping = sampling.length_penalty, sampling.early_stopping
    return replace(
        sampling,
        num_beams=num_beams,
        length_penalty=decoder.length_penalty if power is None else power,
        early_stopping=decoder.early_stopping if stopping is None else stopping,
    )


def _with_limits(sampling: SamplingConfig, decoder: Decoder, config: RunConfig, num_begin: int) -> SamplingConfig:
    """Return the options with what may not be repeated, and how long completions are at least."""
    size, least = sampling.no_repeat_ngram_size, sampling.min_new_tokens
    if size is None:
        size = decoder.no_repeat_ngram_size or None
    varies = any("max_new_tokens" in mode.varies() for mode in config.active_modes)
    if not least and not varies and not sampling.ignore_eos:
        least = min(max(0, decoder.min_len - num_begin), sampling.max_new_tokens)
    return replace(sampling, no_repeat_ngram_size=size, min_new_tokens=least)


def _notes(given: SamplingConfig, settled: SamplingConfig, decoder: Decoder, num_begin: int) -> Iterator[str]:
    """Yield what the user did not ask for, and what is left out of what the model's authors did."""
    taken = []
    if settled.searches and given.num_beams is None:
        taken.append(f"{settled.num_beams} beams")
    if settled.searches and given.length_penalty is None and settled.length_penalty != 1:
        taken.append(f"--length-penalty {settled.length_penalty:g}")
    if settled.searches and given.early_stopping is None and settled.early_stopping != "false":
        taken.append(f"--early-stopping {settled.early_stopping}")
    if settled.no_repeat_ngram_size != given.no_repeat_ngram_size:
        taken.append(f"--no-repeat-ngram-size {settled.no_repeat_ngram_size}")
    if settled.min_new_tokens != given.min_new_tokens:
        taken.append(f"--min-new-tokens {settled.min_new_tokens}")
    if taken:
        faster = "; --num-beams 1 is greedy, and faster" if settled.searches and given.num_beams is None else ""
        yield f"as the model's generation_config.json says: {listed(taken)}{faster}"
    longest = None if decoder.max_len is None else decoder.max_len - num_begin
    is_default = given.max_new_tokens == SamplingConfig.__dataclass_fields__["max_new_tokens"].default
    if longest is not None and is_default and longest != given.max_new_tokens:
        yield (
            f"the model's generation_config.json limits completions to {longest} tokens, this run to "
            f"{given.max_new_tokens}; --max-new-tokens {longest} does as it says"
        )
    if decoder.unused:
        yield f"of the model's generation_config.json, {listed(decoder.unused)} is not used"
