"""Files that only ``datasets`` can read: they are converted once to Arrow."""

from collections.abc import Mapping, Sequence
from typing import Any

from job.data.compression import TORN, damaged, open_bytes
from job.data.formats.files import Files, Opened
from job.data.source import Source, TableSource
from job.errors import NoRows, UsageError

NO_COLUMNS = "it has no rows, so no columns either"

READ_BYTES = 16 << 20


def open_files(files: Files, options: Mapping[str, Any] | None = None) -> Opened:
    """Convert a split.

    Args:
        options: options for the reader in ``datasets``.

    Raises:
        UsageError: a file is truncated or damaged.
        Exception: the data cannot be read for another reason; ``datasets`` raises any.
    """
    try:
        return Opened(source=_convert(files.builder(**(options or {})), files))
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
