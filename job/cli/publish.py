"""``job publish``: puts finished parts and the dataset card into a dataset repository of the Hugging Face Hub."""

import re
import time
from typing import TYPE_CHECKING

import click

from job.cli.options import Place, options, section
from job.config import EngineConfig
from job.errors import UsageError
from job.launch.activity import telling_what_takes_long
from job.launch.stop import StopFlag
from job.observe.text import number

if TYPE_CHECKING:
    from job.output.looking.found import FoundRun
    from job.output.publishing.publication import Publication

UNIT_SECS = {"": 1, "s": 1, "m": 60, "h": 3600}
MIN_EVERY_SECS, MAX_EVERY_SECS = 60, 7 * 86_400
"""The Hub limits how many commits a repository takes in an hour."""


class Interval(click.ParamType[int]):
    """A duration such as ``10m``, converted to seconds."""

    name = "interval"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the seconds."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,9}) ?([smh]?)", str(value).strip(), re.ASCII)
        if found is None:
            self.fail(f"{value!r} is not a duration. Write it as 90s, 10m or 2h.", param, ctx)
        secs = int(found[1]) * UNIT_SECS[found[2]]
        if not MIN_EVERY_SECS <= secs <= MAX_EVERY_SECS:
            meant = "" if found[2] else f" If you mean minutes, write {value}m."
            self.fail(f"{value!r} is {secs:,} seconds; it must be 1 minute to 7 days.{meant}", param, ctx)
        return secs


@click.command(short_help="Publish a run as a dataset on the Hub.")
@click.argument("output", type=Place())
@click.argument("repository", metavar="ORG/NAME")
@click.option(
    "--private",
    "is_private",
    is_flag=True,
    help="Make a new repository private, and refuse a public one [default: as the settings of its owner are].",
)
@click.option(
    "--every",
    "every_secs",
    type=Interval(),
    metavar="TIME",
    help="Publish again in such intervals, such as 10m or 2h (a plain number: seconds), until the run is complete "
    "[default: once].",
)
@options(*section(EngineConfig, only=["hub_timeout"]))
def publish(output: str, repository: str, is_private: bool, every_secs: int | None, hub_timeout: float) -> None:
    """Publish the run in OUTPUT as the dataset ORG/NAME of the Hugging Face Hub: load_dataset("ORG/NAME") reads it.

    Uploads the finished parts and the dataset card, nothing else, and only what is not there yet. As long as rows are
    missing, the card says so. The repository is created if it does not exist; one that holds other parts is refused.
    Killed at any moment, the same command continues. Needs a token with write access: HF_TOKEN, or 'hf auth login'.

    Exit codes: 0 everything that is finished is published; 1 a part is damaged, or the Hub cannot be reached; 2 wrong
    usage, or the repository cannot be written to; 75 stopped on request.
    """
    from job.observe.noise import silence_libraries

    silence_libraries(verbose=False)
    StopFlag(ending=". Run the same command to go on: what is published is not sent again").install()
    from job.output.looking.found import find_run
    from job.output.publishing.publisher import Publisher  # imports pyarrow: only now, so that --help is quick
    from job.output.publishing.repository import Repository
    from job.remote.patience import set_patience

    set_patience(EngineConfig(hub_timeout=hub_timeout).hub_timeout)  # checked there
    run = find_run(output)
    if every_secs is None and not run.directory.written_shards():
        raise UsageError(
            f"{output} has no finished part yet, so there is nothing to publish. Publish later, or with --every 10m."
        )
    target = Repository(repository, is_private=is_private)
    with telling_what_takes_long(_note):
        target.create()
    publisher = Publisher(run, target, _note)
    publication = publisher.publish() if every_secs is None else publisher.publish_repeatedly(every_secs, time.sleep)
    click.echo(describe(run, target.url, publication))


def _note(text: str) -> None:
    click.echo(text, err=True)


def describe(run: "FoundRun", url: str, publication: "Publication") -> str:
    """Return what is published, and what to do if rows are missing."""
    rows = f"{publication.num_rows:,} of {run.plan.num_completions:,} {run.plan.unit}"
    parts = number(len(publication.parts), "part")
    if publication.is_complete:
        return f"{url}: complete, {rows} in {parts}"
    return f"{url}: {rows} in {parts}. The run is not finished: publish again later, or use --every 10m."
