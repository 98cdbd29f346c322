"""Files that only ``datasets`` can read: they are converted once to Arrow, or streamed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from job.data.compression import TORN, damaged, open_bytes
from job.data.formats.files import Files, Opened
from job.data.source import Source, StreamSource, TableSource, count_rows
from job.errors import NoRows, UsageError

NO_COLUMNS = "it has no rows, so no columns either"

READ_BYTES = 16 << 20


def open_files(files: Files, options: Mapping[str, Any] | None = None) -> Opened:
    """Convert a split, or open it as a stream.

    Args:
        options: options for the reader in ``datasets``.

    Raises:
        UsageError: a file is truncated or damaged.
        Exception: the data cannot be read for another reason; ``datasets`` raises any.
    """
    open_split = _open_stream if files.config.streaming else _convert
    try:
        return Opened(source=open_split(files.builder(**(options or {})), files))
    except Exception as error:
        reason = error.__cause__ or error  # datasets wraps the original error
        if isinstance(reason, TORN):
            raise damaged(_first_torn(files.names) or f"--dataset {files.config.dataset}", reason) from None
        if files.is_older and not files.options:
            raise UsageError(
                f"The run in --output was started by an earlier version, which read --dataset {files.config.dataset} "
                "differently. Finish it with that version, or use a new --output."
            ) from None
        raise


def empty_dataset(features: Any, split: str | None) -> Any:
    """Return a ``datasets.Dataset`` with columns but no rows."""
    import datasets

    return datasets.Dataset(features.arrow_schema.empty_table(), split=split and datasets.Split(split))


def _first_torn(files: Sequence[str]) -> str | None:
    """Return the first file that cannot be decompressed to its end."""
    for file in files:
        try:
            with open_bytes(file) as stream:
                while stream.read(READ_BYTES):
                    pass
        except (*TORN, OSError):
            return file
    return None


def _convert(builder: Any, files: Files) -> Source:
    import datasets

    builder.download_and_prepare()
    if builder.info.splits[files.split].num_examples:
        return TableSource(builder.as_dataset(split=datasets.Split(files.split)))
    if not builder.info.features:
        raise NoRows(f"--dataset {files.config.dataset}: {NO_COLUMNS}")
    return TableSource(empty_dataset(builder.info.features, files.split))


def _open_stream(builder: Any, files: Files) -> Source:
    dataset = builder.as_streaming_dataset(split=files.split).with_format("arrow")
    known = (builder.info.splits or {}).get(files.split)

    def tables() -> Iterator[pa.Table]:
        return iter(dataset.iter(batch_size=1000))

    schema = None if dataset.features is None else dataset.features.arrow_schema
    if schema is None:
        first = next(tables(), None)
        if first is None:
            raise NoRows(f"--dataset {files.config.dataset}: {NO_COLUMNS}")
        schema = first.schema
    num_rows = known.num_examples if known else 0
    return StreamSource(tables, num_rows or count_rows(tables(), schema, files.config.limit), schema)
