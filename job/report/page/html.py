"""The HTML file of a page: one file with everything in it, which asks nobody for anything.

Texts of rows are data. They are embedded as JSON, in which no character can end a script, and the script shows them as
text. Besides, a Content-Security-Policy names the digests of our own scripts: no other would run.
"""

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from job.report.page.embedded import to_json

CHART = "chart-4.6.1.min.js"
"""Chart.js (MIT), the file ``dist/chart.umd.min.js`` of its npm package: 210 kB."""


OURS = ("elements.js", "charts.js", "overview.js", "time.js", "labels.js", "rows.js", "page.js")
"""Our own, in the order in which they become one script."""


def to_html(data: dict[str, Any], title: str, *, is_served: bool = False) -> bytes:
    """Return a page.

    Args:
        data: JSON values.
        is_served: whether it may ask the server that it came from for new numbers.
    """
    ours = "\n".join(map(_source, OURS))
    scripts = [_source(CHART), f'(() => {{\n"use strict";\n{ours}\n}})();']
    style = _source("page.css")
    policy = [
        "default-src 'none'",
        f"script-src {' '.join(map(_digest, scripts))}",
        f"style-src {_digest(style)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        *(["connect-src 'self'"] if is_served else []),
    ]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_source("page.html"))
    text = template.render(
        title=title,
        policy="; ".join(policy),
        style=Markup(style),
        data=Markup(to_json(data)),
        scripts=[Markup(script) for script in scripts],
    )
    return text.encode(errors="replace")


@cache
def _source(name: str) -> str:
    text = files("job.report.page").joinpath(name).read_text(encoding="utf-8")
    # The map of the minified source is not here: a browser's tools would ask the network for it.
    return "\n".join(line for line in text.splitlines() if not line.startswith("//# sourceMappingURL"))


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
