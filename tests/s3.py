"""An S3 server in this process (moto), which logs requests and can fail."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

BUCKET = "bucket"


@dataclass
class _Fault:
    when: Callable[[str], object]
    times: int
    is_late: bool


class S3:
    """The server. Its requests are ``log``: method, then path without the bucket."""

    def __init__(self) -> None:
        import moto.server
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps connections

            def log(self, *args: Any) -> None: ...

        self._app = moto.server.DomainDispatcherApplication(moto.server.create_backend_app)
        self.log: list[str] = []
        self.ignored: set[str] = set()
        """Headers that the server does not know, such as ``HTTP_IF_MATCH``."""
        self.reads_bare_versions = False
        """Whether ``If-Match`` with quotes never holds for a PUT, as in Ceph 16."""
        self._faults: list[_Fault] = []
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail(self, when: Callable[[str], object], times: int = 10**9, *, late: bool = False) -> None:
        """Answer the next requests of this kind with 503.

        Args:
            late: do what they ask before: only the answer is lost.
        """
        self._faults.append(_Fault(when, times, late))

    def heal(self) -> None:
        """Answer again."""
        self._faults.clear()

    @property
    def environment(self) -> dict[str, str]:
        """What clients need to find it, as every AWS tool reads it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "a-key",
            "AWS_SECRET_ACCESS_KEY": "a-SECRET",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    @property
    def keys(self) -> list[str]:
        """All keys in the bucket."""
        return sorted(self._bucket.keys)

    def read(self, key: str) -> bytes:
        """Return the contents of an object."""
        return bytes(self._bucket.keys[key].value)

    def age(self, key: str, secs: float) -> None:
        """Let an object have been written so long ago."""
        from datetime import timedelta

        self._bucket.keys[key].last_modified -= timedelta(seconds=secs)

    @property
    def _bucket(self) -> Any:
        from moto.s3.models import s3_backends

        return s3_backends["123456789012"]["aws"].buckets[BUCKET]

    def reset(self) -> None:
        """Make one empty bucket."""
        from moto.s3.models import s3_backends

        backend = s3_backends["123456789012"]["aws"]
        backend.reset()
        backend.create_bucket(BUCKET, "us-east-1")
        self.log.clear()
        self.ignored.clear()
        self.reads_bare_versions = False
        self.heal()

    def _answer(self, environ: Any, start: Any) -> Any:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO'].removeprefix(f'/{BUCKET}/')}"
        self.log.append(request)
        if self.reads_bare_versions and environ["REQUEST_METHOD"] == "PUT" and "HTTP_IF_MATCH" in environ:
            environ["HTTP_IF_MATCH"] = f'"{environ["HTTP_IF_MATCH"]}"'
        for header in self.ignored:
            environ.pop(header, None)
        for fault in self._faults:
            if fault.times > 0 and fault.when(request):
                fault.times -= 1
                if fault.is_late:
                    list(self._app(environ, lambda *args: None))
                start("503 Slow Down", [("Content-Length", "0")])
                return [b""]
        return self._app(environ, start)
