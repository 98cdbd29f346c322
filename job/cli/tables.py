"""Writes rows that a command has chosen to a file that the user names."""

from pathlib import Path
from typing import Any

import click

from job.errors import UsageError
from job.observe.text import number

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def format_of(option: str, to: str) -> str:
    """Return the format of a file to be written, before anything is read.

    Raises:
        UsageError: its name does not say, or it is elsewhere.
    """
    from job.output.store.addresses import check_local

    check_local(option, to, "Name a local file.")
    form = FORMATS.get(Path(to).suffix.lower())
    if form is None:
        raise UsageError(f"--{option} {to}: the name must end in .csv, .jsonl or .parquet.")
    return form


def write_file(option: str, to: str, rows: Any, form: str, runs: tuple[str, ...], *, force: bool) -> None:
    """Write rows, and say so.

    Args:
        rows: an Arrow table.
        runs: run directories, in which the file must not be.

    Raises:
        UsageError: the file exists, or cannot be created.
        JobError: it cannot be written in full.
    """
    from job.output.looking.exporting.target import check_outside, new_file
    from job.output.looking.exporting.writers import write_table
    from job.output.store.addresses import local_path

    first, *others = runs
    for run in others:
        check_outside(Path(to), local_path(run), option)
    with new_file(Path(to), local_path(first), force=force, option=option) as file:
        write_table(rows, form, file)
    click.echo(f"{to}: {number(len(rows), 'row')}", err=True)
