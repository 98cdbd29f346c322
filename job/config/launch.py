"""The options of one launch: the order of rows, where it stops, and what it tells others meanwhile and at the end."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

from job.config.stopping import Bound, read_bound
from job.errors import UsageError, require
from job.modes.options import option

RANDOM = "random"
ORDERS = ("dataset", RANDOM)

LOOPBACK = "127.0.0.1"
MAX_PORT = 65_535

PORT_NEED = f"PORT or ADDRESS:PORT, such as 9400, 0.0.0.0:9400 or [::1]:9400, with a port from 0 (any) to {MAX_PORT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchConfig:
    """How one launch goes, and what it tells others. No field here may affect what is in a row, so a restart may change
    any of them."""

    metrics_port: str | None = option(
        None,
        "Serve figures for Prometheus at http://ADDRESS:PORT/metrics while the run goes on. Without an address, only "
        "this machine can read them. If the port is taken, the next free one is used, and a line says which; 0: any.",
        metavar="[ADDRESS:]PORT",
        may_be_number=True,
    )
    on_end: str | None = option(
        None,
        "Run this shell command when the launch ends (done, stopped or failed), with what came out as JSON on its "
        "standard input; or send the JSON to this http(s):// address. A failure of it changes nothing.",
        metavar="CMD|URL",
    )

    order: str = option(
        "dataset",
        "random: compute the rows in a random order, which --seed fixes, so that a run that is stopped early is an "
        "unbiased sample. The output stays in row order.",
        choices=ORDERS,
    )
    stop_after: str | None = option(
        None,
        "Stop once so many rows of the run are finished (10000, 10k rows, 5%), or so many of its tokens (5M tokens), "
        "or after a time of this launch (90m, 2h): rows in flight are finished, and the exit code is 4. The same "
        "command with more, or without it, goes on.",
        metavar="ROWS|TOKENS|TIME",
        may_be_number=True,
    )

    @property
    def is_random(self) -> bool:
        """Whether rows are computed in a random order."""
        return self.order == RANDOM

    @property
    def stop_bound(self) -> Bound | None:
        """Where the launch stops early; None: at the end."""
        return None if self.stop_after is None else read_bound(self.stop_after)

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """The address and the port to serve figures at; None: they are not served."""
        return None if self.metrics_port is None else address_of(self.metrics_port)

    def __post_init__(self) -> None:
        require(self.order in ORDERS, "order", self.order, f"one of {', '.join(ORDERS)}")
        assert self.stop_bound is None or self.stop_bound.text  # refuses one that cannot be read
        if self.metrics_port is not None:
            require(address_of(self.metrics_port) is not None, "metrics-port", self.metrics_port, PORT_NEED)
            if find_spec("prometheus_client") is None:
                raise UsageError(
                    "--metrics-port needs the package prometheus-client: pip install 'dataset-inference-job[metrics]'."
                )
        if self.on_end is not None:
            _check_on_end(self.on_end)


def address_of(text: str) -> tuple[str, int] | None:
    """Return the address and the port in ``[ADDRESS:]PORT``; None if it is something else.

    >>> address_of("9400"), address_of("0.0.0.0:0"), address_of("[::1]:9400"), address_of("node1:9400")
    (('127.0.0.1', 9400), ('0.0.0.0', 0), ('::1', 9400), ('node1', 9400))
    >>> address_of(":9400"), address_of("::1"), address_of("70000"), address_of("http://node1:9400")
    (None, None, None, None)
    """
    match = re.fullmatch(r"(?:(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[A-Za-z0-9._-]+)):)?(?P<port>[0-9]{1,5})", text)
    if match is None or int(match["port"]) > MAX_PORT:
        return None
    return match["six"] or match["host"] or LOOPBACK, int(match["port"])


def is_webhook(on_end: str) -> bool:
    """Whether a value of ``--on-end`` is an address rather than a command.

    >>> is_webhook("https://host/hook"), is_webhook("curl https://host/hook")
    (True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://\S*$", on_end) is not None


def _check_on_end(value: str) -> None:
    """Refuse what is neither a command nor an address. Messages do not show the value, which may hold a secret."""
    if not value.strip() or "\0" in value:
        raise UsageError("--on-end is empty. Give a shell command or an http(s):// address, or leave it out.")
    if not is_webhook(value):
        return
    try:
        url = urlsplit(value)
        is_usable = url.scheme.lower() in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise UsageError("--on-end is an address that nothing can be sent to. It must be http://HOST or https://HOST.")
