"""Completions under JSON schemas: whether those that finished are valid, and what masks cost.

Usage: scripts/bench structured valid [NUM_ROWS] [--data FILE.jsonl]
       scripts/bench structured overhead [ROUNDS] [NUM_ROWS] [--data FILE.jsonl]

``valid``: three schemas (nested, enum, array with bounds) over one chat instruction each, greedy and at temperature 1,
judged by the package jsonschema. ``overhead``: the same rows for the same number of steps of one token each, with masks
and without, in turn. The grammar is of lines like those of a JSON object, of which there is always one more: no row
ends before the last step, and nothing is forced, which would save steps. Only steps in which all rows decode count.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from _workload import MODEL, ROOT, Loaded, gauge, load

REVIEWS = ROOT / "scripts/demo-data/reviews-200.jsonl"

SCHEMAS: dict[str, Any] = {
    "nested": {
        "type": "object",
        "properties": {
            "product": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 40}, "price": {"type": ["number", "null"]}},
                "required": ["name", "price"],
            },
            "opinion": {
                "type": "object",
                "properties": {"is_positive": {"type": "boolean"}, "reason": {"type": "string", "maxLength": 80}},
                "required": ["is_positive", "reason"],
            },
        },
        "required": ["product", "opinion"],
    },
    "enum": {
        "type": "object",
        "properties": {
            "sentiment": {"enum": ["positive", "negative", "neutral"]},
            "topic": {"enum": ["price", "quality", "delivery", "other"]},
            "stars": {"enum": [1, 2, 3, 4, 5]},
        },
        "required": ["sentiment", "topic", "stars"],
    },
    "array": {
        "type": "object",
        "properties": {
            "aspects": {
                "type": "array",
                "minItems": 1,
                "maxItems": 4,
                "items": {
                    "type": "object",
                    "properties": {
                        "aspect": {"type": "string", "minLength": 2, "maxLength": 30},
                        "score": {"type": "integer", "minimum": -5, "maximum": 5},
                    },
                    "required": ["aspect", "score"],
                },
            }
        },
        "required": ["aspects"],
    },
}
MAX_NEW_TOKENS = {"valid": 256, "overhead": 96}
DRAWS: dict[str, dict[str, Any]] = {"greedy": {}, "temperature 1": {"temperature": 1.0, "seed": 1}}
ENDLESS = """%llguidance { "no_forcing": true }
start: line start
line: /"[^"\\\\\\x00-\\x1f]{1,30}": (-?[0-9]{1,4}|true|"[^"\\\\\\x00-\\x1f]*"),\\n/
"""


def prompts_of(data: Path, num_rows: int, instruction: str) -> list[list[int]]:
    """Return the ids of so many rows' texts, the chat template applied; they begin anew if there are too few."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = [json.loads(line) for line in data.open(encoding="utf-8")]
    texts = [row["text"] for row in rows]
    chats = [[{"role": "user", "content": f"{instruction}\n\n{texts[idx % len(texts)]}"}] for idx in range(num_rows)]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]


def run(loaded: Loaded, prompts: list[list[int]], answer: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Complete prompts; return the generations, and the seconds of each step in which all rows decode."""
    from job.data.grammar import compile_grammar
    from transformers import AutoTokenizer

    from job.config import EngineConfig
    from job.engine.paged.engine import PagedEngine
    from job.records import Request
    from job.tasks import Generate, SamplingParams

    grammar = compile_grammar(answer, AutoTokenizer.from_pretrained(MODEL))
    task = Generate(params=SamplingParams(**params), grammar=grammar)
    engine = PagedEngine(loaded.model, loaded.shapes, EngineConfig(), loaded.replica)
    for row_idx, ids in enumerate(prompts):
        engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=ids, task=task))
    generations, decode_secs, num_steps, start = [], [], 0, time.perf_counter()
    while engine.num_pending:
        running = engine.scheduler.running
        all_decode = len(running) == len(prompts) and all(row.num_generated and row.num_missing == 1 for row in running)
        step_start = time.perf_counter()
        generations += engine.step()
        num_steps += 1
        if all_decode:
            decode_secs.append(time.perf_counter() - step_start)
    secs = time.perf_counter() - start
    return {"generations": generations, "decode_secs": decode_secs, "num_steps": num_steps, "secs": round(secs, 1)}


def valid(num_rows: int = 500, data: Path = REVIEWS) -> None:
    """Print what share of the rows that finished is valid."""
    import jsonschema
    from transformers import AutoTokenizer

    from job.arrow.json_schema import DoesNotFit, parse, shape_of
    from job.config import AnswerConfig

    loaded, tokenizer = load(), AutoTokenizer.from_pretrained(MODEL)
    for name, schema in SCHEMAS.items():
        names = ", ".join(schema["properties"])
        prompts = prompts_of(data, num_rows, f"Describe this review as JSON with {names}.")
        for draw, params in DRAWS.items():
            params = {"max_new_tokens": MAX_NEW_TOKENS["valid"], **params}
            text = json.dumps(schema)
            result = run(loaded, prompts, AnswerConfig(json_schema=text), params)
            counts = Counter[str]()
            for generation in result["generations"]:
                counts[generation.finish_reason or str(generation.error)] += 1
                if generation.finish_reason == "stop":
                    completion = tokenizer.decode(generation.token_ids, skip_special_tokens=True)
                    try:
                        jsonschema.validate(json.loads(completion), schema)
                        counts["valid"] += 1
                        parse(completion, shape_of(text))
                        counts["fits the typed column"] += 1
                    except (ValueError, jsonschema.ValidationError, DoesNotFit) as error:
                        print(repr(completion), error, file=sys.stderr)
            num_tokens = sum(len(generation.token_ids) for generation in result["generations"])
            figures = {"completion_tokens": num_tokens, "steps": result["num_steps"], "secs": result["secs"]}
            print(json.dumps({"schema": name, "draw": draw, "rows": num_rows, **counts, **figures}), flush=True)


def overhead(rounds: int = 3, num_rows: int = 240, data: Path = REVIEWS) -> None:
    """Print what a step costs with masks and without."""
    from job.config import AnswerConfig

    loaded = load()
    prompts = prompts_of(data, num_rows, "Describe this review as lines of JSON.")
    params: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS["overhead"]}
    runs = {
        "without": (AnswerConfig(), {**params, "ignore_eos": True}),
        "with masks": (AnswerConfig(grammar=ENDLESS), params),
    }
    step_ms: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (answer, sampling) in runs.items():
            result = run(loaded, prompts, answer, sampling)
            assert all(len(g.token_ids) == MAX_NEW_TOKENS["overhead"] for g in result["generations"])
            step_ms[name].append(round(1000 * sum(result["decode_secs"]) / len(result["decode_secs"]), 1))
            print(json.dumps({"run": name, "step_ms": step_ms[name][-1], "secs": result["secs"]}), flush=True)
    share = median(step_ms["with masks"]) / median(step_ms["without"]) - 1
    print(json.dumps({"rows": num_rows, "step_ms": step_ms, "overhead": round(share, 3), "machine": gauge()}))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    options: dict[str, Any] = {}
    if "--data" in arguments:
        at = arguments.index("--data")
        options["data"] = Path(arguments[at + 1])
        del arguments[at : at + 2]
    modes = {"valid": valid, "overhead": overhead}
    modes[arguments[0] if arguments else "valid"](*map(int, arguments[1:]), **options)
