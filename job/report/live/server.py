"""Serves a worker's figures over HTTP, in threads of their own: a scrape never waits for a step, nor a step for it."""

import errno
import threading
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from job.config.launch import MAX_PORT
from job.report.live.exposition import Exposition
from job.report.live.figures import Seen

MAX_TRIED = 64
"""How many ports are tried, from the one that was asked for on: several workers and launches may share a node."""


class FiguresServer:
    """An open server."""

    def __init__(self, address: str, port: int, see: Callable[[], Seen]) -> None:
        """Open the port, or the next one that is free.

        Args:
            address: an address of this machine.
            port: 0: any that is free.
            see: returns what is shown. It is called in other threads.

        Raises:
            OSError: the address is not this machine's, or no port is free.
        """
        registry = CollectorRegistry()
        registry.register(Exposition(see))
        ProcessCollector(registry=registry)
        self._server, self._thread = _opened(address, port, registry)
        self.address, self.port = address, int(self._server.server_port)

    @property
    def url(self) -> str:
        """Where the figures are."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _opened(address: str, port: int, registry: CollectorRegistry) -> tuple[Any, threading.Thread]:
    last = min(port + MAX_TRIED - 1, MAX_PORT) if port else 0
    for candidate in range(port, last + 1):
        try:
            return start_http_server(candidate, address, registry)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or candidate == last:
                raise
    raise AssertionError("unreachable")
