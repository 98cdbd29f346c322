"""What a completion may be, compiled by llguidance for the model's tokenizer: a JSON schema, a regex or a grammar.

A mistake in it is found here, before weights are loaded.
"""

import contextlib
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from job.arrow.json_schema import closed, read_schema
from job.config import AnswerConfig
from job.errors import UsageError
from job.tasks import Grammar

JSON_FORM: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python's ``json.dumps`` writes it. Where white space is free, a small model may write it for ever."""

MAX_REASON_CHARACTERS = 400


def with_texts(answer: AnswerConfig) -> AnswerConfig:
    """Replace paths of a schema or a grammar by what is in the files.

    Raises:
        UsageError: there is no such file, and it is no text of its kind.
    """
    if answer.json_schema is not None:
        schema = _text_of("--json-schema", answer.json_schema, "{", 'a schema, such as {"type": "object"}')
        read_schema(schema)
        return replace(answer, json_schema=schema)
    if answer.grammar is not None:
        grammar = _text_of("--grammar", answer.grammar, ":", "a grammar, such as 'start: /[a-z]+/'")
        return replace(answer, grammar=grammar)
    return answer


def compile_grammar(answer: AnswerConfig, tokenizer: Any) -> Grammar | None:
    """Compile the constraint that was asked for, if one was.

    Raises:
        UsageError: llguidance cannot, or nothing matches; or the tokenizer is not one that it can read.
    """
    if answer.constraint is None:
        return None
    from llguidance import LLMatcher

    option = "--" + answer.constraint.replace("_", "-")
    readable = _readable_tokenizer(tokenizer, option, is_json=answer.json_schema is not None)
    compile_anew = functools.partial(LLMatcher, readable, _source(answer), log_level=0)
    matcher = compile_anew()
    if matcher.is_error():
        raise UsageError(f"{option} cannot be compiled: {_one_line(matcher.get_error())}")
    allowed, eos = matcher.compute_bitmask(), readable.eos_token
    if matcher.get_error().startswith("NoExtensionBias"):
        raise UsageError(f"{option} matches no text. Mend it.")
    if matcher.is_error():
        raise UsageError(f"{option} cannot be used: {_one_line(matcher.get_error())}")
    if allowed[eos // 8] >> eos % 8 & 1 and sum(byte.bit_count() for byte in allowed) == 1:
        raise UsageError(f"{option} matches the empty text alone. Mend it.")
    return Grammar(compile=compile_anew, vocab_size=readable.vocab_size, eos_token_id=eos)


def _source(answer: AnswerConfig) -> str:
    """Return the constraint as llguidance takes it."""
    from llguidance import LLMatcher

    if answer.json_schema is not None:
        schema = closed(read_schema(answer.json_schema))
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=cast(Any, JSON_FORM)))
    if answer.regex is not None:
        return str(LLMatcher.grammar_from_regex(answer.regex))
    return str(LLMatcher.grammar_from_lark(answer.grammar or ""))


def _readable_tokenizer(tokenizer: Any, option: str, *, is_json: bool) -> Any:
    """Return llguidance's view of a tokenizer."""
    from llguidance import LLTokenizer
    from llguidance.hf import from_tokenizer

    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        lacking = "fast tokenizer" if not tokenizer.is_fast else "end-of-sequence token"
        raise UsageError(f"{option} needs a {lacking}; this model has none.")
    slices = LLTokenizer.json_slices() if is_json else LLTokenizer.general_slices()
    try:
        return from_tokenizer(tokenizer, slices=slices)
    except Exception as error:  # llguidance raises what its parts raise
        raise UsageError(f"{option}: llguidance cannot read this model's tokenizer: {_one_line(str(error))}") from None


def _text_of(option: str, value: str, mark: str, example: str) -> str:
    """Return a text, or that of the file which it names; texts of the kind hold a mark that names of files do not."""
    with contextlib.suppress(OSError, ValueError):  # too long for a name: no file
        if Path(value).is_file():
            try:
                return Path(value).read_text(encoding="utf-8-sig")
            except (OSError, ValueError) as error:
                raise UsageError(f"{option} {value}: {error}.") from None
    if mark not in value:
        raise UsageError(f"{option} {value!r} is neither a file nor {example}.")
    return value


def _one_line(text: str) -> str:
    """Return llguidance's reason without the excerpts of the source that it shows in lines of their own.

    >>> _one_line('at 1(8): invalid regex "(" (in regex): regex parse error:\\n    (\\n    ^\\nerror: unclosed group')
    'regex parse error: error: unclosed group'
    """
    text = text.partition("<state>")[0]  # behind it are llguidance's insides
    line = " ".join(line.strip() for line in text.splitlines() if line[:1].strip())
    line = line.partition("(in regex): ")[2] or line
    return line if len(line) <= MAX_REASON_CHARACTERS else line[:MAX_REASON_CHARACTERS] + " ..."
