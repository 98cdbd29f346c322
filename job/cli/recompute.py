"""``job verify --recompute``: computes some finished rows again, and compares them with what the run wrote."""

import json
import sys
from typing import Any

import click
from click.core import ParameterSource

from job.cli.options import Size, Text, options, section
from job.config import EngineConfig, ModelConfig
from job.errors import EXIT_DONE, EXIT_FAILED, UsageError
from job.launch.activity import telling_what_takes_long
from job.launch.stop import StopFlag
from job.observe.noise import silence_libraries, silence_progress_bars
from job.observe.progress import Progress
from job.wording import flag

OF_ENGINE = ("device", "engine", "max_batch_rows", "kv_cache_memory", "attention_backend", "hub_timeout")

RECOMPUTE_OPTIONS = options(
    click.option(
        "--recompute",
        type=click.IntRange(min=1),
        metavar="N",
        help="In place of checking the files, compute N finished rows again and compare: a random sample, spread over "
        "workers and over time.",
    ),
    click.option("--model", type=Text(), metavar="ID_OR_DIR", help="Where the model is now [default: where it was]."),
    click.option(
        "--dataset", type=Text(), metavar="ID_OR_PATH", help="Where the dataset is now [default: where it was]."
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float16", "bfloat16", "float32"]),
        help="Recompute in this precision [default: the run's].",
    ),
    *section(EngineConfig, only=["device", "engine"]),
    click.option(
        "--max-batch-rows",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Maximum number of rows computed at once. 1: each row alone.",
    ),
    click.option(
        "--kv-cache-memory", type=Size(), metavar="SIZE", help="Memory for the KV cache, e.g. 2GiB, as for job run."
    ),
    *section(EngineConfig, only=["attention_backend", "hub_timeout"]),
    *section(ModelConfig, only=["trust_remote_code"]),
    click.option(
        "--tie-gap",
        type=click.FloatRange(min=0, min_open=True),
        metavar="LOGITS",
        help="Call it a near tie if another token misses being chosen by at most this [default: 0.001 in float32, "
        "0.06 in float16, 0.5 in bfloat16].",
    ),
    click.option(
        "--sample-seed", type=int, default=0, show_default=True, help="Which rows are drawn depends on this seed."
    ),
    click.option("--verbose", is_flag=True, help="With --recompute: let DeepSpeed and transformers write to stderr."),
)


def refuse_alone(ctx: click.Context, values: dict[str, Any]) -> None:
    """Refuse options that have no effect without ``--recompute``.

    Raises:
        UsageError: one was given.
    """
    given = [name for name in values if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        raise UsageError(f"{flag(given[0])} has no effect without --recompute. Give --recompute N, or leave it out.")


def recompute(output: str, number: int, values: dict[str, Any], *, as_json: bool) -> int:
    """Recompute rows, print the outcome, and return the exit code.

    Raises:
        UsageError: the rows cannot be recomputed from what is there.
        JobError: a part, the dataset or the model cannot be read.
    """
    from job.output.looking.found import find_run  # imports pyarrow: only now, so that --help is quick

    run = find_run(output)
    silence_libraries(verbose=values["verbose"])
    StopFlag(ending="").install()
    from job.remote.patience import set_patience
    from job.report.describe_audit import describe_audit
    from job.run.audit import audit, drawn  # imports torch
    from job.run.recompute import Asked

    silence_progress_bars(verbose=values["verbose"])
    set_patience(values["hub_timeout"])
    # Nothing is shared between rows, and no step is replayed: what is compared is as simple as it can be.
    engine = EngineConfig(
        share_prefixes=False, cuda_graphs=False, overlap=False, **{name: values[name] for name in OF_ENGINE}
    )
    asked = Asked(engine=engine, **{name: values[name] for name in ("dtype", "model", "dataset", "trust_remote_code")})
    note = Progress(enabled=True).note
    with telling_what_takes_long(note):
        sample = drawn(run, number, values["sample_seed"])
    bar_of_rows = click.progressbar(
        length=len(sample.rows), label="rows", file=sys.stderr, hidden=not sys.stderr.isatty()
    )
    with bar_of_rows as bar:
        found = audit(run, sample, asked, tie_gap=values["tie_gap"], note=note, tell=bar.update)
    click.echo(json.dumps({"output": output, **found.to_dict()}) if as_json else describe_audit(output, found))
    return EXIT_FAILED if found.is_bad else EXIT_DONE
