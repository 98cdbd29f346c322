"""Whether the rows of a run still have their prompts when its limit grows.

In csv and spreadsheets, what cells mean follows from all rows within ``--limit``: a column of whole numbers becomes one
of decimal numbers, or text, with the first row that says so. Then 1 may be 1.0 in a template.
"""

from collections.abc import Callable, Iterator

from job.config import DataConfig
from job.data.dataset import OpenDataset
from job.data.prompts import PromptRenderer
from job.data.source import Source, read_rows
from job.errors import UsageError, shorten
from job.output.parts.manifest import Manifest
from job.records import Prompt
from job.wording import listed


def check_grown(
    dataset: OpenDataset,
    data: DataConfig,
    renderer: PromptRenderer,
    found: Manifest | None,
    reopen: Callable[[int], OpenDataset],
) -> None:
    """Check that a larger limit leaves the prompts of the rows that the run has as they are.

    Args:
        found: the manifest of the run, if it exists.
        reopen: opens the same dataset with another limit.

    Raises:
        UsageError: one of them would be another.
    """
    limit = None if found is None else found.section("dataset")["limit"]
    if not dataset.infers_types or limit is None or (data.limit is not None and data.limit <= limit):
        return
    schema, earlier = dataset.source.schema, reopen(limit).source
    names = [name for name in renderer.read_columns if name in schema.names and name in earlier.schema.names]
    changed = [name for name in names if schema.field(name).type != earlier.schema.field(name).type]
    if not changed:
        return
    rows = range(min(limit, earlier.num_rows))
    pairs = zip(
        *(_prompts(source, data.dataset, rows, names, renderer) for source in (earlier, dataset.source)), strict=True
    )
    if (differing := next(((was, now) for was, now in pairs if was != now), None)) is None:
        return
    was, now = differing
    types = [f"{name!r} was {earlier.schema.field(name).type}, now {schema.field(name).type}" for name in changed]
    texts = "" if was.text == now.text else f": {shorten(was.text)!r} would be {shorten(now.text)!r}"
    raise UsageError(
        f"--dataset {data.dataset}: with the larger --limit, its columns have other types ({listed(types)}), and the "
        f"run's row {was.row_idx} would have another prompt{texts}. Use a new --output, or give --limit {limit} to go "
        "on."
    )


def _prompts(source: Source, name: str, rows: range, columns: list[str], renderer: PromptRenderer) -> Iterator[Prompt]:
    for block in read_rows(source, name, rows, columns, ()):
        yield from map(renderer.render, block.rows)
