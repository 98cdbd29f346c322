"""The page of ``job report``: writing it to a file, or serving it while the run goes on."""

import contextlib
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from job.cli.options import options
from job.errors import UsageError

if TYPE_CHECKING:
    from job.report.page.data import PageData
    from job.report.whole import Report

LIVE_SECS = 5.0

PAGE_OPTIONS = options(
    click.option(
        "--page",
        metavar="FILE",
        help="The HTML file to write [default: report.html in OUTPUT; with --json: none]. It is replaced if it exists.",
    ),
    click.option("--no-page", is_flag=True, help="Write no page, and only print numbers."),
    click.option(
        "--price-per-gpu-hour",
        "price",
        type=click.FloatRange(min=0),
        help="What an hour of one GPU costs, in any currency: adds the price of the run, of 1,000 rows and of a "
        "million tokens.",
    ),
    click.option(
        "--watch", is_flag=True, help="Serve the page on this machine, where it follows the run, until Ctrl-C."
    ),
    click.option("--port", type=click.IntRange(1, 65_535), help="The port of --watch [default: any that is free]."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says of the page."""

    file: str | None
    is_wanted: bool
    price: float | None
    is_watched: bool
    port: int | None

    @classmethod
    def of(
        cls, page: str | None, no_page: bool, price: float | None, watch: bool, port: int | None, as_json: bool
    ) -> "Asked":
        """Check the options.

        Raises:
            UsageError: they do not go together.
        """
        if page is not None and no_page:
            raise UsageError("--page was given with --no-page. Give one of them.")
        if page is not None and Path(page).suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--page is {page!r}; it must end in .html.")
        if port is not None and not watch:
            raise UsageError("--port was given without --watch, which serves the page there.")
        if watch and (as_json or page is not None or no_page):
            raise UsageError("--watch serves the page; it goes with neither --json nor --page nor --no-page.")
        if price is not None and not math.isfinite(price):  # click.FloatRange lets nan and inf through
            raise UsageError(f"--price-per-gpu-hour is {price}; it must be a number.")
        is_wanted = not no_page and (page is not None or not as_json)
        return cls(file=page, is_wanted=is_wanted, price=price, is_watched=watch, port=port)


class Pages:
    """Makes pages of one run, with numbers that are new each time."""

    def __init__(self, output: str, labels: "Callable[[], tuple[Report | None, str | None]]", asked: Asked) -> None:
        """Find the run.

        Args:
            labels: makes the report of the labels, or says why there is none.

        Raises:
            UsageError: OUTPUT is not a run directory.
        """
        from job.run.status import Inspection

        self._output, self._labels, self._asked = output, labels, asked
        self._inspection = Inspection(output)

    def make(self, *, live_secs: float | None = None) -> "PageData":
        """Read the run.

        Raises:
            JobError: it cannot be read.
        """
        from job.output.looking.found import find_run
        from job.report.page.data import page_data

        status = self._inspection.look()
        while status.is_partial and live_secs is None:
            status = self._inspection.look()
        report, note = self._labels()
        return page_data(
            find_run(self._output),
            status,
            None if report is None else report.labels,
            labels_note=note,
            label_next=None if report is None else report.label_next,
            price_per_hour=self._asked.price,
            live_secs=live_secs,
        )

    def write(self, data: "PageData") -> str:
        """Write a page, and return where it is and how large.

        Raises:
            UsageError: it cannot be written there.
            JobError: it cannot be written in full.
        """
        from job.output.looking.exporting.target import new_file
        from job.output.store.names import PAGE
        from job.report.page.html import to_html

        page, store, file = to_html(data.to_dict(), _title(self._output)), data.run.directory.store, self._asked.file
        place = store.describe(PAGE) if file is None else file
        if file is not None:  # a page of before stays until the new one is complete
            with new_file(Path(file), None, force=True, option="page") as target:
                target.write(page)
        else:
            try:
                store.replace(PAGE, page)
            except OSError as error:
                advice = "Name another file with --page."
                raise UsageError(f"{place} cannot be written: {error.strerror or error}. {advice}") from None
        return f"{place} ({len(page) / 1e6:.1f} MB)"

    def serve(self) -> None:
        """Serve the page until Ctrl-C.

        Raises:
            UsageError: the port is taken.
        """
        from job.report.page.serving import Latest, PageServer

        def numbers() -> dict[str, Any]:
            return self.make(live_secs=LIVE_SECS).to_dict()

        latest = Latest(numbers, LIVE_SECS)
        latest.get()  # what cannot be read is said here, not in a browser
        server = PageServer(latest, _title(self._output), self._asked.port or 0)
        click.echo(f"{server.url} follows {self._output}. Ctrl-C ends it.")
        click.echo(
            f"To read it on another machine, run there: ssh -L {server.port}:127.0.0.1:{server.port} "
            f"{socket.gethostname()}",
            err=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.serve()


def _title(output: str) -> str:
    return f"{Path(output.rstrip('/')).name or output} - job report"
