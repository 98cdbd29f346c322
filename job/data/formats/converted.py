"""Files that only ``datasets`` can read: they are converted once to Arrow, or streamed.

``datasets`` infers the types from the first rows. If later rows do not fit them, some formats can find types that fit
all rows, and the files are read again with these.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from job.data.formats.files import Files
from job.data.source import TORN, Source, StreamSource, TableSource, count_rows
from job.errors import UsageError, first_line

NO_COLUMNS = "it has no rows, so no columns either"

CommonSchema = Callable[[Any, Files], pa.Schema | None]
"""Returns columns whose types fit all rows of the files; empty or None if there are none."""


def open_files(
    files: Files, options: Mapping[str, Any] | None = None, common_schema: CommonSchema | None = None
) -> Source:
    """Convert a split, or open it as a stream.

    Args:
        options: options for the reader in ``datasets``.

    Raises:
        UsageError: a file is truncated or damaged, or no types fit all rows.
        ValueError, pyarrow.ArrowException, DatasetsError: the data cannot be read for another reason.
    """
    import datasets

    builder = files.builder(**(options or {}))
    open_split = _open_stream if files.config.streaming else _convert
    try:
        return open_split(builder, files.split, files.config.limit)
    except (*TORN, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error  # datasets wraps the original error
        if isinstance(reason, TORN):
            name = _first_torn(files.local_names) or f"--dataset {files.config.dataset}"
            raise UsageError(f"{name}: the file is truncated or damaged: {first_line(reason)}.") from None
        schema = common_schema and common_schema(builder, files)
        if not schema and str(error) == NO_COLUMNS:
            raise UsageError(f"--dataset {files.config.dataset}: {NO_COLUMNS}") from None
        if not schema:
            raise
    features = datasets.Features.from_arrow_schema(schema)
    return open_split(files.builder(**(options or {}), features=features), files.split, files.config.limit)


def empty_dataset(features: Any, split: str | None) -> Any:
    """Return a ``datasets.Dataset`` with columns but no rows."""
    import datasets

    return datasets.Dataset(features.arrow_schema.empty_table(), split=split and datasets.Split(split))


def _first_torn(files: Sequence[str]) -> str | None:
    """Return the first file that cannot be decompressed to its end."""
    import fsspec

    for file in files:
        try:
            with fsspec.open(file, compression="infer") as stream:
                while stream.read(16 << 20):
                    pass
        except (*TORN, OSError):
            return file
    return None


def _convert(builder: Any, split: str, limit: int | None) -> TableSource:
    import datasets

    builder.download_and_prepare()
    if builder.info.splits[split].num_examples:
        return TableSource(builder.as_dataset(split=datasets.Split(split)))
    if not builder.info.features:
        raise ValueError(NO_COLUMNS)
    return TableSource(empty_dataset(builder.info.features, split))


def _open_stream(builder: Any, split: str, limit: int | None) -> StreamSource:
    dataset = builder.as_streaming_dataset(split=split)
    known = (builder.info.splits or {}).get(split)
    schema = None if dataset.features is None else dataset.features.arrow_schema
    if schema is None:
        first = next(iter(dataset.with_format("arrow").iter(batch_size=1000)), None)
        if first is None:
            raise ValueError(NO_COLUMNS)
        schema = first.schema
    num_rows = known.num_examples if known and known.num_examples else count_rows(dataset, schema, limit)
    return StreamSource(dataset, num_rows, schema)
