"""Rows as lines of OpenAI's batch output: one per row of the dataset, with a choice for each sample.

(platform.openai.com/docs/guides/batch, "Retrieve the results".) OpenAI writes errors to a second file in the same form;
here they are in the same file, in the order of the rows.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, BinaryIO

import pyarrow as pa

from job.output.looking.exporting import openai_logprobs
from job.output.looking.exporting.cells import rows_of, to_json
from job.output.looking.exporting.openai_logprobs import TokenBytes
from job.output.looking.exporting.run_table import RunTable
from job.output.parts.manifest import Manifest
from job.records import CUT_REASONS, RowError

ID_COLUMN = "custom_id"

COLUMNS = (
    *("row_idx", "sample_idx", "completion", "finish_reason"),
    *("num_prompt_tokens", "num_completion_tokens", "error"),
)

REASONING = ("reasoning", "num_reasoning_tokens")

ROWS_AT_ONCE = 64
"""As Python values, log probabilities take many times their size."""

Sample = Mapping[str, Any]


def write_answers(
    table: RunTable, batches: Iterable[pa.RecordBatch], file: BinaryIO, token_bytes: TokenBytes | None = None
) -> None:
    """Write a line per row of the dataset. The batches must have the columns that ``answer_columns`` names.

    Args:
        token_bytes: for a run with log probabilities. None leaves them out.
    """
    answers = Answers(table.run.manifest, token_bytes)
    pieces = (batch.slice(at, ROWS_AT_ONCE) for batch in batches for at in range(0, len(batch), ROWS_AT_ONCE))
    samples = (sample for piece in pieces for sample in rows_of(piece))
    for row_idx, of_row in itertools.groupby(samples, key=itemgetter("row_idx")):
        file.write(to_json(answers.line(row_idx, list(of_row))).encode() + b"\n")


def answer_columns(manifest: Manifest) -> tuple[str, ...]:
    """Return the columns that the lines are made from."""
    id_column, measured = find_id_column(manifest), _measured(manifest)
    columns = (*COLUMNS, *(name for name in (*REASONING, *openai_logprobs.COLUMNS) if name in measured))
    return columns if id_column is None else (*columns, id_column)


def has_logprobs(manifest: Manifest) -> bool:
    """Whether the rows have log probabilities."""
    return "token_logprobs" in _measured(manifest)


def _measured(manifest: Manifest) -> frozenset[str]:
    """Return the columns whose values come from the model. The user's own may have such names in other runs."""
    return frozenset(field.name for mode in manifest.modes for field in mode.measured())


def find_id_column(manifest: Manifest) -> str | None:
    """Return the column of the requests' ids: ``custom_id`` if it was kept, else the run's id column, or None."""
    if any(text.startswith(f"{ID_COLUMN}: ") for text in manifest.section("columns")["kept"]):
        return ID_COLUMN
    found: str | None = manifest.about.get("id_column")
    return found


class Answers:
    """Converts rows of one run to OpenAI's form. The same run always gives the same lines."""

    def __init__(self, manifest: Manifest, token_bytes: TokenBytes | None = None) -> None:
        """Collect what all lines have in common."""
        self._token_bytes = token_bytes if has_logprobs(manifest) else None
        self._has_reasoning = REASONING[0] in _measured(manifest)
        prompt = manifest.section("prompt")
        self._id_column, self._name = find_id_column(manifest), manifest.digest[:16]
        self._model, self._created = manifest.about["model"], _seconds(manifest.about["created"])
        self._is_text = prompt["request_column"] is not None and not prompt["chat"]

    def line(self, row_idx: int, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the line of a row."""
        name = f"{self._name}-{row_idx}"
        answered = [sample for sample in samples if sample["error"] is None]
        custom_id = samples[0][self._id_column] if self._id_column else None
        return {
            "id": f"batch_req_{name}",
            "custom_id": f"row-{row_idx}" if custom_id is None else str(custom_id),
            "response": self._response(name, answered) if answered else None,
            "error": error_of(samples),
        }

    def _response(self, name: str, samples: Sequence[Sample]) -> dict[str, Any]:
        num_prompt_tokens = samples[0]["num_prompt_tokens"]  # the prompt is read once for all samples
        num_completion_tokens = sum(sample["num_completion_tokens"] for sample in samples)
        usage: dict[str, Any] = {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_completion_tokens,
            "total_tokens": num_prompt_tokens + num_completion_tokens,
        }
        if self._has_reasoning:
            num_reasoning_tokens = sum(sample["num_reasoning_tokens"] for sample in samples)
            usage["completion_tokens_details"] = {"reasoning_tokens": num_reasoning_tokens}
        body = {
            "id": f"{'cmpl' if self._is_text else 'chatcmpl'}-{name}",
            "object": "text_completion" if self._is_text else "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [self._choice(sample) for sample in samples],
            "usage": usage,
        }
        return {"status_code": 200, "request_id": f"req_{name}", "body": body}

    def _choice(self, sample: Sample) -> dict[str, Any]:
        text, logprobs = sample["completion"], None
        message = {"role": "assistant", "content": text}
        if self._has_reasoning:
            message["reasoning_content"] = sample["reasoning"]
        content = {"text": text} if self._is_text else {"message": message}
        if self._token_bytes is not None:
            of = openai_logprobs.of_text if self._is_text else openai_logprobs.of_chat
            logprobs = of(sample, self._token_bytes)
        reason = (
            "length" if sample["finish_reason"] in CUT_REASONS else sample["finish_reason"]
        )  # the API knows no other
        return {"index": sample["sample_idx"], **content, "finish_reason": reason, "logprobs": logprobs}


def error_of(samples: Sequence[Sample]) -> dict[str, str] | None:
    """Return what went wrong with a row's samples; None if nothing did.

    >>> error_of([{"error": "null_prompt: column 'q' is null"}, {"error": None}])
    {'code': 'null_prompt', 'message': "column 'q' is null"}
    """
    errors = list(dict.fromkeys(sample["error"] for sample in samples if sample["error"] is not None))
    if not errors:
        return None
    found = [RowError.parse(error) for error in errors]
    return {"code": found[0].kind, "message": "; ".join(error.detail for error in found)}


def _seconds(created: str) -> int:
    """Return a time of a manifest as seconds since 1970.

    >>> _seconds("1970-01-01T01:00:10+0100")
    10
    """
    return int(datetime.strptime(created, "%Y-%m-%dT%H:%M:%S%z").timestamp())
