"""A resolved run: what the user typed, plus what was looked up in the dataset, the tokenizer and the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from job.config import RunConfig
from job.data.openai_batch import BODY_COLUMN
from job.data.separated import column_named, columns_to_keep
from job.output.parts.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRun:
    """A configuration, resolved for its dataset and its model."""

    config: RunConfig
    chat: bool
    """Whether a chat template is applied."""
    batch_id_column: str | None = None
    """The column with the requests' ids if the dataset is a batch of requests to OpenAI's API."""
    max_prompt_tokens: int = 0
    """Maximum number of prompt tokens."""
    keep_columns: tuple[tuple[str, str], ...] = ()
    """What ``--keep-columns`` means: columns, and the names under which they are kept; ``*`` may be among them."""

    def with_columns(self, columns: Sequence[str]) -> "ResolvedRun":
        """Return the run with the names of the dataset's columns in place of what the user typed."""
        data, prompt = self.config.data, self.config.prompt
        keep = columns_to_keep(data.keep_columns, columns)
        data = replace(data, id_column=data.id_column and column_named(data.id_column, columns))
        text = prompt.text_column
        meant = text and column_named(text, columns)
        prompt = replace(
            prompt,
            prompt_column=prompt.prompt_column if meant == text else meant,  # the default is named only if it differs
            messages_column=prompt.messages_column and column_named(prompt.messages_column, columns),
        )
        return replace(self, config=replace(self.config, data=data, prompt=prompt), keep_columns=keep)

    @property
    def is_batch(self) -> bool:
        """Whether the dataset is a batch of requests to OpenAI's API."""
        return self.batch_id_column is not None

    @property
    def request_column(self) -> str | None:
        """The column with the requests if the dataset is such a batch."""
        return BODY_COLUMN if self.is_batch else None

    @property
    def text_column(self) -> str | None:
        """The column whose text is the prompt; None if the prompt comes from messages, requests or a template."""
        return None if self.is_batch else self.config.prompt.text_column

    @property
    def id_column(self) -> str | None:
        """The column to write right after the indices."""
        return self.config.data.id_column or self.batch_id_column

    @property
    def named_columns(self) -> tuple[tuple[str, str], ...]:
        """The columns to keep and their names in the output, the id first; ``*`` may be among them."""
        ids = [(name, name) if name else None for name in (self.id_column, self.batch_id_column)]
        return tuple(dict.fromkeys(pair for pair in (ids[0], *self.keep_columns, ids[1]) if pair))


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What a run over rows that are not there yet would do."""

    schema: pa.Schema
    """The columns of its output."""
    manifest: Manifest
    """Apart from what follows from its rows, and from the contents of the model's weights."""
    fallback_dtype: str | None
    """See ``ModelInfo``."""
