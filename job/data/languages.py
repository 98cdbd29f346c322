"""The languages of a translation model: which ones its tokenizer knows, and what it does to read or write one."""

import re
from collections.abc import Mapping
from typing import Any

from job.data.tokenizer import Tokenizer
from job.errors import UsageError
from job.wording import meant

CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}|__(?P<name>[a-z]{2,8})__")
"""A token that names a language: ``fra_Latn`` (NLLB), ``fr_XX`` (mBART), ``__fr__`` (M2M-100)."""

PREFIXED = "Say what to do in the prompt: --prompt-template 'translate English to German: {{ text }}' (T5), '>>fra<< "
PREFIXED += "{{ text }}' (Marian)."


def languages_of(tokenizer: Tokenizer) -> Mapping[str, int]:
    """Return the languages, by the names that a user gives, and the ids of their tokens."""
    found: dict[str, int] = {}
    for token, idx in tokenizer.special_tokens.items():
        if match := CODE.fullmatch(token):
            found[match["name"] or token] = idx
    of_inner: Any = getattr(tokenizer.inner, "lang_code_to_id", None)
    return found | (dict(of_inner) if isinstance(of_inner, Mapping) else {})


def target_id(tokenizer: Tokenizer, language: str) -> int:
    """Return the token that a translation into a language begins with: the language's, or the named token itself.

    Raises:
        UsageError: the tokenizer has neither.
    """
    known = {**tokenizer.special_tokens, **languages_of(tokenizer)}
    if language in known:
        return known[language]
    raise UsageError(_refusal("--target-language", language, tokenizer))


def read_as(tokenizer: Tokenizer, language: str) -> None:
    """Let a tokenizer mark prompts as texts in a language.

    Raises:
        UsageError: it does not know the language, or marks none.
    """
    inner = tokenizer.inner
    languages = languages_of(tokenizer)
    if languages and language not in languages:
        raise UsageError(_refusal("--source-language", language, tokenizer))
    if not hasattr(inner, "src_lang"):
        raise UsageError(
            f"--source-language was given, but the tokenizer ({type(inner).__name__}) does not mark the language of a "
            f"text. Leave it out. {PREFIXED}"
        )
    inner.src_lang = language


def _refusal(flag: str, language: str, tokenizer: Tokenizer) -> str:
    languages = sorted(languages_of(tokenizer))
    if not languages:
        return f"{flag} is {language!r}, but the tokenizer has no such token, and none of a language. {PREFIXED}"
    near = meant(language, languages)
    shown = ", ".join(languages[:8])
    more = f" and {len(languages) - 8} more" if len(languages) > 8 else ""
    question = "" if near is None else f" Did you mean {near!r}?"
    return f"{flag} is {language!r}, which is not a language of the tokenizer.{question} Languages: {shown}{more}."
