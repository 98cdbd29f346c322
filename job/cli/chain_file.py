"""The file of a chain: the options of all its steps, and those of each.

What chooses and reads the dataset is for the steps that read the dataset of the chain, the first among them; the others
read what an earlier step wrote, and keep all of its columns and its completions under its name, unless they say else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from job.cli.config_file import read_toml, values_in
from job.cli.run import run
from job.config import DataConfig, RunConfig
from job.errors import UsageError
from job.run.chain_step import Step, of_step
from job.run.parsing import to_config
from job.wording import flag, listed

STEPS, FROM = "steps", "from"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

OF_ALL_STEPS = ("id_column", "keep_columns", "earlier_errors")
"""Options of ``DataConfig`` that are not about one dataset."""

OF_DATASET = {
    field.name: None if field.default is MISSING else field.default
    for field in fields(DataConfig)
    if field.name not in OF_ALL_STEPS
}
"""The others, with their defaults."""

OF_LAUNCH = {
    **dict.fromkeys(("tensor_parallel_size", "device", "hub_timeout"), "engine"),
    **dict.fromkeys(("metrics_port", "on_end"), "launch"),
}
"""What one process cannot change between two steps, with the section that it is in."""

UNSHOWN = ("on_end",)
"""What may hold a secret."""


def read_steps(
    ctx: click.Context, path: Path, options: Sequence[str], *, dataset: str | None, output: str | None
) -> list[Step]:
    """Read the steps of a chain, in their order.

    Args:
        options: of ``job run``, from the command line: they win over the file.
        dataset: of the chain, in place of the one in the file.
        output: the same of the directory.

    Raises:
        UsageError: the file is wrong, or a step has options that cannot be used.
    """
    top = read_toml(path, str(path))
    tables = _tables(path, top.pop(STEPS, None))
    common = values_in(top, str(path), run)
    root = output or common.pop("output", None)
    if root is None:
        raise UsageError(f'{path} has no output. Give --output, or write output = "DIR" at its top.')
    if dataset is not None:
        common["dataset"] = dataset
    steps: list[Step] = []
    for name, table in tables.items():
        where = f"{path}, step {name}"
        source = _source(where, table.pop(FROM, None), [step.name for step in steps])
        own = values_in(table, where, run)
        _check_own(where, own, source)
        values = {**common, **own, "output": f"{str(root).rstrip('/')}/{name}"}
        values.setdefault("keep_columns", ["*"] if source is None else ["*", f"completion={source}"])
        if source is not None:
            values["dataset"] = f"{str(root).rstrip('/')}/{source}"
        elif "dataset" not in values:
            raise UsageError(f'{path} has no dataset. Give --dataset, or write dataset = "..." at its top.')
        with of_step(name):
            config = _config(ctx, values, own, options, source)
            _refuse_stop(config)
        steps.append(Step(name=name, config=config, source=source))
    _check_same(path, steps)
    return steps


def _tables(path: Path, tables: Any) -> dict[str, dict[str, Any]]:
    """Return the table of each step.

    Raises:
        UsageError: there is none, or one of them is not a table, or has a name that a directory cannot have.
    """
    if not isinstance(tables, dict) or not tables:
        raise UsageError(f"{path} has no steps. Write a table for each, such as [{STEPS}.draft].")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {STEPS}.{name} is {table!r}; it must be a table, [{STEPS}.{name}].")
        if NAME.fullmatch(name) is None:
            raise UsageError(f"{path}: a step is named {name!r}. Use letters, digits, - and _.")
    names: dict[str, str] = {}
    for name in tables:
        if (other := names.setdefault(name.casefold(), name)) != name:
            raise UsageError(f"{path}: steps {other} and {name} have the same name on some file systems. Rename one.")
    return tables


def _source(where: str, given: Any, before: Sequence[str]) -> str | None:
    """Return the step whose rows a step reads; None: the dataset of the chain.

    Raises:
        UsageError: it is not one of those before.
    """
    if given is None:
        return before[-1] if before else None
    if given not in before:
        there = f"The steps before it: {', '.join(before)}" if before else "It is the first, and reads the dataset"
        raise UsageError(f"{where}: from is {given!r}, which is not a step before it. {there}.")
    return str(given)


def _check_own(where: str, own: Mapping[str, Any], source: str | None) -> None:
    """Refuse what a step cannot have of its own.

    Raises:
        UsageError: it has that.
    """
    if "output" in own:
        raise UsageError(f"{where}: output is for the top of the file; a step writes into a directory in it.")
    wrong = [name for name in OF_DATASET if name in own] if source is not None else []
    if wrong:
        verb = "is" if len(wrong) == 1 else "are"
        raise UsageError(
            f"{where}: {listed(wrong)} {verb} for the dataset of the chain, but this step reads step {source}. "
            "Write it at the top."
        )


def _config(
    ctx: click.Context, values: Mapping[str, Any], own: Mapping[str, Any], options: Sequence[str], source: str | None
) -> RunConfig:
    """Return the configuration of a step: the command line wins over the file."""
    with run.make_context("run", list(options), parent=ctx.parent, default_map=dict(values)) as of_run:
        params = {**of_run.params, "output": values["output"]}
        is_typed = of_run.get_parameter_source("reuse") is ParameterSource.COMMANDLINE
    if is_typed or "reuse" not in own:  # of an earlier chain, each step takes the same step
        step = values["output"].rpartition("/")[2]
        params["reuse"] = tuple(
            f"{str(name).rstrip('/')}/{step}" if str(name).strip() else name for name in params["reuse"]
        )
    if source is None and "earlier_errors" not in own:
        params["earlier_errors"] = None  # what is said for all steps is of the steps themselves
    if source is not None:
        params |= OF_DATASET | {"dataset": values["dataset"]}
    return to_config(params)


def _refuse_stop(config: RunConfig) -> None:
    """Refuse to stop a step before its end: the next one needs all of its rows.

    Raises:
        UsageError: that is asked for.
    """
    if config.launch.stop_after is not None:
        raise UsageError(
            "--stop-after is not possible in a chain: a step reads all rows of the one before it. Use --limit, or stop "
            "a job run of its own."
        )


def _check_same(path: Path, steps: Sequence[Step]) -> None:
    """Refuse steps that would need another launch.

    Raises:
        UsageError: there are such steps.
    """
    for name, section in OF_LAUNCH.items():
        given = {getattr(getattr(step.config, section), name): step.name for step in steps}
        if len(given) > 1:
            shown = ["given in several ways"] if name in UNSHOWN else []
            both = listed(shown or [f"{value} in step {step}" for value, step in given.items()])
            raise UsageError(f"{path}: {flag(name)} is {both}. It must be the same in all steps: write it at the top.")
