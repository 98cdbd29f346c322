"""``job preview``: shows what ``job run`` with the same options would do. Needs no GPU or weights; writes nothing."""

import json
import sys
from typing import Any

import click

from job.cli.options import (
    CONFIG_OPTION,
    DATA_OPTIONS,
    ENGINE_OPTIONS,
    MODE_OPTIONS,
    MODEL_OPTIONS,
    PART_OPTIONS,
    PROMPT_OPTIONS,
    SAMPLING_OPTIONS,
    Place,
)
from job.cli.repeated import RepeatingCommand, notes_on_repeats
from job.engine.fit.gpus import GPUS
from job.errors import UsageError
from job.launch.activity import telling_what_takes_long
from job.launch.stop import StopFlag
from job.observe.noise import silence_libraries, silence_progress_bars
from job.observe.progress import Progress
from job.run.parsing import to_config

ALL_ROWS = "all"


class NumRows(click.ParamType[int | None]):
    """A number of rows, or all (None)."""

    name = "rows"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return the number.

        >>> NumRows().convert("1000", None, None), NumRows().convert("all", None, None)
        (1000, None)
        """
        if value is None or value == ALL_ROWS:
            return None
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither a positive whole number nor '{ALL_ROWS}'.", param, ctx)
        return int(value)


@click.command(cls=RepeatingCommand, short_help="Show what a run would do, without loading the model.")
@MODEL_OPTIONS
@DATA_OPTIONS
@PROMPT_OPTIONS
@SAMPLING_OPTIONS
@MODE_OPTIONS
@click.option("--output", type=Place(), default="preview", metavar="DIR", help="Ignored by preview.")
@PART_OPTIONS
@ENGINE_OPTIONS
@CONFIG_OPTION
@click.option(
    "--num-prompts", type=click.IntRange(min=0), default=3, show_default=True, help="Number of prompts to show."
)
@click.option(
    "--rows",
    "num_rows",
    type=NumRows(),
    default="1000",
    show_default=True,
    metavar="N|all",
    help="Number of rows to read, spread evenly over the dataset; the first N if they would have to be fetched.",
)
@click.option(
    "--gpu",
    type=click.Choice(sorted(GPUS)),
    help="Say whether the model fits on this GPU, and how long a replica needs at least, by its data sheet "
    "[default: the memory that is free on this machine].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--verbose", is_flag=True, help="Let transformers and datasets write to stderr.")
def preview(num_prompts: int, num_rows: int | None, gpu: str | None, as_json: bool, **values: Any) -> None:
    """Show what job run with the same options would do: prompts, their lengths, errors, memory, output.

    Needs the tokenizer, the model's configuration and the data, but neither weights nor a GPU; writes nothing.

    Exit codes: 0 shown; 1 the data cannot be read; 2 job run would refuse these options, or every row that was read
    would be an error row; 75 stopped on request.
    """
    config = to_config(values)
    for remark in notes_on_repeats():
        click.echo(remark, err=True)
    silence_libraries(verbose=config.verbose)
    StopFlag(ending="").install()
    from job.launch.devices import likely_device
    from job.observe.preview_report import describe_preview
    from job.remote.patience import set_patience
    from job.run.copy_decision import foreseen
    from job.run.examination import examine  # imports torch: only now, so that --help is quick
    from job.run.fit import room_on
    from job.run.pinned import model_files
    from job.run.prompt_sample import look_ahead
    from job.run.reuse import as_in_others, open_others

    silence_progress_bars(verbose=config.verbose)
    set_patience(config.engine.hub_timeout)
    device = likely_device(config.engine.device, is_gpu_named=gpu is not None)
    note = Progress(enabled=True).note
    with telling_what_takes_long(note):
        others = open_others(config, None)
        config = as_in_others(config, others)
        examined = examine(config, model_files(config), device, needs_weights=False, num_rows=num_rows)
        examined = foreseen(examined, others)
    total = min(examined.plan.num_rows, num_rows or examined.plan.num_rows)
    bar_of_rows = click.progressbar(length=total, label="rows", file=sys.stderr, hidden=not sys.stderr.isatty())
    with telling_what_takes_long(note, only_servers=True), bar_of_rows as bar:
        seen = look_ahead(examined, room_on(gpu, device), num_prompts=num_prompts, num_rows=num_rows, tell=bar.update)
    click.echo(json.dumps(seen.to_dict()) if as_json else describe_preview(seen))
    if seen.num_sampled and seen.num_errors == seen.num_sampled:
        raise UsageError(f"Every row that was read ({seen.num_sampled:,}) would be an error row, as shown above.")
