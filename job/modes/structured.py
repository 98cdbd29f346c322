"""Structured text: every completion is JSON that follows a schema, matches a regex, or follows a grammar.

llguidance compiles the constraint for the model's tokenizer before weights are loaded, so that mistakes in it are found
early.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from job.errors import Doubt, UsageError, shorten
from job.modes.llguidance_tokens import one_line, readable_tokenizer
from job.modes.mode import BoundMode, LabelColumn, Mode, Outcome, Setting, Tokens
from job.modes.options import option
from job.modes.texts import names_file, read_text_or_file
from job.records import Completion
from job.tasks import Generate, Grammar, Task

if TYPE_CHECKING:
    import pyarrow as pa

    from job.arrow.json_schema import Shape
    from job.config import RunConfig

JSON_FORM: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""The layout of Python's ``json.dumps``. If white space were free, a small model might write it forever."""

PARSE_OK = "parse_ok"
"""The column, and the tally of its values."""

TRUTHS = {"true": True, "false": False}


def _read_schema(value: str) -> str:
    """Return the text of ``--json-schema``."""
    example = 'a schema, such as {"type": "object"}'
    text = read_text_or_file("--json-schema", value, is_text=lambda text: "{" in text, example=example)
    if names_file(value) and text.strip():
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--json-schema {value} is not JSON: {error}.") from None
    return _not_empty("--json-schema", value, text, example)


def _read_grammar(value: str) -> str:
    """Return the text of ``--grammar``."""
    example = "a grammar, such as 'start: /[a-z]+/'"
    text = read_text_or_file("--grammar", value, is_text=lambda text: ":" in text, example=example)
    return _not_empty("--grammar", value, text, example)


def _not_empty(option: str, value: str, text: str, example: str) -> str:
    """Return the text of a file, unless that is empty."""
    if not text.strip():
        raise UsageError(f"{option} {value!r} is an empty file. Write {example} into it.")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredMode(Mode):
    """Text under a constraint, and the values parsed from it."""

    name: ClassVar[str] = "structured"
    decides_end: ClassVar[bool] = True
    serves_beams: ClassVar[bool] = False

    json_schema: str | None = option(
        None, "Completions are JSON that follows this schema.", metavar="TEXT_OR_FILE", read=_read_schema
    )
    regex: str | None = option(None, "Whole completions match this regular expression.")
    """Rust's syntax: no look-around, no back references."""
    grammar: str | None = option(
        None, "Completions follow this Lark grammar.", metavar="TEXT_OR_FILE", read=_read_grammar
    )

    def check(self, config: "RunConfig") -> None:
        """See ``Mode``."""
        given = self.given()
        if len(given) > 1:
            names = " and ".join("--" + name.replace("_", "-") for name in given)
            raise UsageError(f"{names} were given together. Give only one: it defines what a completion may be.")
        if "" in given.values():
            raise UsageError(f"{self.flag} is ''; it must be a non-empty text.")
        if self.json_schema is not None:
            from job.arrow.json_schema import read_schema

            read_schema(self.json_schema)

    def doubts(self) -> Iterator[Doubt]:
        """See ``Mode``."""
        if self.json_schema is not None:
            from job.arrow.schema_check import doubts_about

            for doubt in doubts_about(self.json_schema):
                yield replace(doubt, problem=f"--json-schema: {doubt.problem}")

    def bind(self, setting: Setting) -> BoundMode:
        """See ``Mode``."""
        return BoundStructured(self.compiled(setting.tokens))

    def accepts(self, completion: Completion) -> bool:
        """See ``Mode``."""
        return parse_completion(completion, self._shape())[0] is not False

    def derived(self) -> "list[pa.Field]":
        """See ``Mode``."""
        import pyarrow as pa

        shape = self._shape()
        return [
            pa.field("parse_ok", pa.bool_()),
            *([] if shape is None else [pa.field("parsed", shape.arrow_type)]),
        ]

    def derive(self, completions: Sequence[Completion], earlier: "Mapping[str, pa.Array]") -> "Mapping[str, pa.Array]":
        """See ``Mode``."""
        import pyarrow as pa

        shape = self._shape()
        parsed = [parse_completion(completion, shape) for completion in completions]
        columns = {"parse_ok": pa.array([is_ok for is_ok, _ in parsed], pa.bool_())}
        if shape is not None:
            columns["parsed"] = pa.array([value for _, value in parsed], shape.arrow_type)
        return columns

    def tally(self, batch: "pa.RecordBatch | pa.Table") -> Mapping[str, Mapping[str, int]]:
        """Count the completions that meet the whole constraint and those that do not."""
        from job.arrow.values import count_values

        if PARSE_OK in batch.schema.names:
            counted: Mapping[Any, int] = count_values(batch[PARSE_OK])
        else:
            shape = self._shape()
            pairs = zip(batch["completion"].to_pylist(), batch["finish_reason"].to_pylist(), strict=True)
            counted = Counter(_parse(text, reason, shape)[0] for text, reason in pairs if text is not None)
        return {PARSE_OK: {name: counted[is_ok] for name, is_ok in TRUTHS.items() if counted.get(is_ok)}}

    def describe(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        """Say how many completions meet the whole constraint."""
        counted = outcome.tallies.get(PARSE_OK, {})
        num_ok, total = counted.get("true", 0), sum(counted.values())
        advice = "" if num_ok == total else "; job show --unparsed shows the others"
        return [(PARSE_OK, f"{num_ok:,} of {total:,} completions{advice}")] if total else []

    def rules(self, batch: "pa.RecordBatch", is_error: "pa.Array") -> "Iterator[tuple[str, pa.Array]]":
        """See ``Mode``."""
        import pyarrow.compute as pc

        yield "neither parse_ok nor error, or both", pc.equal(pc.is_null(batch["parse_ok"]), is_error)
        is_ok = pc.fill_null(batch["parse_ok"], False)
        has_stopped = pc.equal(pc.fill_null(batch["finish_reason"], ""), "stop")
        if self.json_schema is not None:  # a completion that stopped may still have a number too large for its column
            yield "parse_ok, but a finish_reason other than stop", pc.or_(pc.invert(is_ok), has_stopped)
            yield "parsed, but not parse_ok", pc.or_(is_ok, pc.is_null(batch["parsed"]))
        else:
            yield "parse_ok and finish_reason contradict each other", pc.equal(is_ok, has_stopped)

    def label_columns(self) -> Sequence[LabelColumn]:
        """See ``Mode``: the properties that are one of some texts."""
        from job.arrow.json_schema import enums_of

        shape = self._shape()
        found = enums_of(str(self.json_schema)) if shape is not None and shape.members else {}
        return [LabelColumn(name=f"parsed.{name}", classes=values) for name, values in found.items()]

    def serves(self, response_format: Mapping[str, Any]) -> bool:
        """See ``Mode``."""
        asked = response_format.get("json_schema")
        if self.json_schema is None or response_format.get("type") != "json_schema" or not isinstance(asked, dict):
            return False
        return bool(asked.get("schema") == json.loads(self.json_schema))

    def properties(self) -> tuple[str, ...] | None:
        """Return the names of the properties that the schema's objects may have; None without a schema."""
        from job.arrow.json_schema import read_schema

        shape = self._shape()
        if shape is None:
            return None
        named = read_schema(str(self.json_schema)).get("properties")  # an object that may have others has no shape
        return tuple(name for name, _ in shape.members) or (tuple(named) if isinstance(named, dict) else ())

    def _shape(self) -> "Shape | None":
        """Return how the schema's values are laid out in Arrow; None without a schema."""
        from job.arrow.json_schema import shape_of

        return None if self.json_schema is None else shape_of(self.json_schema)

    def compiled(self, tokens: Tokens) -> Grammar:
        """Compile the constraint for a tokenizer.

        Raises:
            UsageError: llguidance cannot compile it or read the tokenizer, or no text but the empty one matches.
        """
        from llguidance import LLMatcher

        readable = readable_tokenizer(tokens.inner, self.flag, is_json=self.json_schema is not None)
        compile_anew = functools.partial(LLMatcher, readable, self._source(), log_level=0)
        matcher = compile_anew()
        if matcher.is_error():
            raise UsageError(self._why_not_compiled(matcher.get_error()))
        allowed, eos = matcher.compute_bitmask(), readable.eos_token
        if matcher.get_error().startswith("NoExtensionBias"):
            raise UsageError(f"{self.flag} cannot match any text. Fix it.")
        if matcher.is_error():
            raise UsageError(f"{self.flag} cannot be used: {one_line(matcher.get_error())}")
        if allowed[eos // 8] >> eos % 8 & 1 and sum(byte.bit_count() for byte in allowed) == 1:
            raise UsageError(f"{self.flag} matches only the empty text. Fix it.")
        return Grammar(compile=compile_anew, vocab_size=readable.vocab_size, eos_token_id=eos)

    def _why_not_compiled(self, reason: str) -> str:
        """Return llguidance's reason as a message that says where to look."""
        if self.json_schema is None:
            what = f"{self.flag} {shorten(self.regex)!r}" if self.regex is not None else self.flag
            return f"{what} cannot be compiled: {one_line(reason)}."
        from job.arrow.json_schema import read_schema
        from job.arrow.schema_check import place_of

        where = place_of(read_schema(self.json_schema), reason)
        if "coerce_one_of" in reason:
            line = "the alternatives of 'oneOf' may overlap. Use 'anyOf', or alternatives of which only one can match"
        elif found := re.match(r"Unimplemented keys: \[(.*)\]", reason):
            line = f"not supported: {found[1].replace(chr(34), chr(39))}. Leave it out, or say it in another way"
        else:
            line = one_line(reason)
        return f"{self.flag} cannot be compiled: {f'{where}: ' if where else ''}{line}."

    def _source(self) -> str:
        """Return the constraint in llguidance's form."""
        from llguidance import LLMatcher

        if self.json_schema is not None:
            from job.arrow.json_schema import closed, read_schema

            schema = closed(read_schema(self.json_schema))
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=cast(Any, JSON_FORM)))
        if self.regex is not None:
            return str(LLMatcher.grammar_from_regex(self.regex))
        return str(LLMatcher.grammar_from_lark(self.grammar or ""))


class BoundStructured(BoundMode):
    """Adds the compiled constraint to the task."""

    def __init__(self, grammar: Grammar) -> None:
        """Constrain completions to ``grammar``."""
        self._grammar = grammar

    def refine(self, task: Task, values: Mapping[str, Any]) -> Task:
        """See ``BoundMode``."""
        assert isinstance(task, Generate), "RunConfig refuses a constraint together with choices"
        return replace(task, grammar=self._grammar)


def parse_completion(completion: Completion, shape: "Shape | None") -> tuple[bool | None, Any]:
    """Return whether a completion meets its whole constraint (None for an error), and its parsed value.

    Args:
        shape: of the schema's values, if there is a schema.
    """
    if completion.completion is None:
        return None, None
    return _parse(completion.completion, completion.finish_reason, shape)


def _parse(text: str, finish_reason: str | None, shape: "Shape | None") -> tuple[bool, Any]:
    from job.arrow.json_schema import DoesNotFit, parse

    if finish_reason != "stop":
        return False, None
    if shape is None:
        return True, None
    try:
        return True, parse(text, shape)
    except DoesNotFit:
        return False, None
