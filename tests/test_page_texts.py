"""The page of ``job report`` and its readers: texts are data, whatever is in them, and everybody can read it."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from job.output.sharing.metrics import WorkerStats
from job.report.page.html import to_html
from tests.browsing import Tab, open_browser
from tests.conftest import Result
from tests.labeled_runs import probs_of, write_run

RunJob = Callable[..., Result]

MARKUP = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp;<!-- <script>"
ODD = "\u2028\u2029 \u202e\u05d0 RTL\u202c \x00 NUL \x1b[31m 😀 ${7*7} {{7*7}} </textarea></title></style>]]>"
EVIL = f"{MARKUP} {ODD}"
SURROGATE = "lone \ud800 <b>surrogate</b>"
"""What only a manifest can hold: a Parquet file is always valid UTF-8."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as found:
        yield found


def evil_run(output: Path) -> Path:
    """Write a run in which every text that a page shows is evil."""
    answers = [f"yes {EVIL}", f"no {EVIL}", None, f"yes {EVIL}"]
    modes = {"choices": {"choices": answers[:2]}}
    values = probs_of([None if text is None else text[:3].strip() for text in answers], [0.75] * 4)
    values["prompt"] = [EVIL, "a" * 1_000_000, EVIL, EVIL]
    values["error"] = [None, None, f"{MARKUP}: {EVIL}", None]
    values["error_kind"] = [None, None, MARKUP, None]
    kept = {f"column {EVIL}": [EVIL] * 4, "__proto__": [EVIL] * 4}
    write_run(output, answers, modes=modes, kept=kept, values=values, dataset=EVIL)
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["about"]["model"] = f"org/{SURROGATE}"
    (output / "manifest.json").write_text(json.dumps(manifest))
    (output / "metrics").mkdir()
    stats = WorkerStats(
        worker_id=f"worker {EVIL}", time=1000, elapsed_secs=10, num_rows=4, num_tokens=50, num_at_work=1
    )
    last = replace(stats, time=1100, left=f"left {EVIL}", device=f"device {EVIL}")
    (output / "metrics" / "w.jsonl").write_text(stats.to_json() + last.to_json())
    return output


def test_every_text_is_shown_and_none_runs(run_job: RunJob, tmp_path: Path, browser: Any) -> None:
    """Prompts, completions, errors, labels; the names of columns, workers, devices, models, datasets and the run."""
    run = evil_run(tmp_path / "run <img src=x onerror=window.hacked=3>")
    result = run_job("report", run, "--gold", "completion", "--page", tmp_path / "a.html")
    assert result.exit_code == 0, result.stderr
    tab = Tab(browser, (tmp_path / "a.html").as_uri())
    assert tab.page.title().startswith("run <img src=x") and tab.raw("#output") == run.name
    shown = {
        "#subtitle": f"org/lone ? <b>surrogate</b> on {EVIL}",
        "#facts": EVIL,
        "#labels-table": f"yes {EVIL}"[:59],
        "#confusion": f"no {EVIL}",
        "#events": f"stopped: left {EVIL}",
        "#workers": f"device {EVIL}",
        "#kinds": MARKUP.split(": ")[0],
    }
    for selector, text in shown.items():
        assert text in tab.raw(selector), selector
    for summary in tab.page.locator("#list summary").all():
        summary.click()
    row = tab.page.locator("[data-row='0.0']")
    assert (
        row.locator("pre.prompt").text_content() == EVIL
        and row.locator("pre.completion").text_content() == f"yes {EVIL}"
    )
    facts = row.locator("dt").all_text_contents()
    assert f"column {EVIL}" in facts and "__proto__" in facts
    assert tab.raw("[data-row='2.0'] pre.error") == f"{MARKUP}: {EVIL}"
    assert "996,000 characters are not shown here" in tab.raw("[data-row='1.0'] pre.prompt")
    tab.page.locator("#search").fill("{{7*7}} </TEXTAREA>")
    tab.wait_for("#found", "4 rows found")
    tab.page.locator("#filter").select_option(f"error:{MARKUP.split(': ')[0]}")
    tab.wait_for("#found", "1 row found")
    assert tab.page.evaluate("typeof window.hacked") == "undefined" and tab.troubles == []
    assert tab.page.locator("img").count() == 0 and tab.page.locator("script").count() == 3
    tab.close()


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = ([red, green, blue]) =>
    0.2126 * linear(red / 255) + 0.7152 * linear(green / 255) + 0.0722 * linear(blue / 255);
  const over = (below, color) => below.map((part, idx) => part + (color[3] ?? 1) * (color[idx] - part));
  const behind = (element) => {
    const own = parse(getComputedStyle(element).backgroundColor), { parentElement: parent } = element;
    return own.length < 4 ? own : over(parent ? behind(parent) : [255, 255, 255], own);
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const isShown = (element) => element.getClientRects().length && !element.disabled && !element.closest("noscript");
  return [...document.querySelectorAll("body *")].filter((each) => hasText(each) && isShown(each)).map((each) => {
    const two = [luminance(parse(getComputedStyle(each).color)), luminance(behind(each))].sort((a, b) => b - a);
    return [(two[0] + 0.05) / (two[1] + 0.05), `${each.tagName} ${each.className} ${each.textContent.slice(0, 40)}`];
  });
}"""
"""The contrast of each text that is shown with what is behind it, as WCAG 2.2 defines it."""


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with everything that a page can show."""
    from click.testing import CliRunner

    from job.cli import main

    parent = tmp_path_factory.mktemp("plain")
    answers = ["yes", "no", None, "yes"] * 10
    values = {**probs_of(answers, [0.5 + idx / 100 for idx in range(40)]), "num_completion_tokens": list(range(1, 41))}
    run = write_run(parent / "run", answers, kept={"gold": ["yes", "no"] * 20}, values=values)
    (run / "metrics").mkdir()
    lines = [
        WorkerStats(
            worker_id="n-1-a", time=1000 + 10 * idx, elapsed_secs=10 * idx, num_tokens=9 * min(idx, 5), num_at_work=1
        )
        for idx in range(20)
    ]
    (run / "metrics" / "n-1-a.jsonl").write_text("".join(line.to_json() for line in lines))
    result = CliRunner().invoke(main, ["report", str(run), "--gold", "gold", "--page", str(parent / "a.html")])
    assert result.exit_code == 0, result.output
    return parent / "a.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_texts_have_contrast(plain_page: Path, browser: Any, scheme: str) -> None:
    """At least 4.5, the limit of WCAG 2.2 AA for small texts, in each state of a run, with what is found marked."""
    tab = Tab(browser, plain_page.as_uri(), scheme=scheme)
    tab.page.locator("#search").fill("prompt 1")
    tab.wait_for("#found", "11 rows found")
    for summary in tab.page.locator("#list summary").all()[:2]:
        summary.click()
    for state in ("done", "running", "idle", "broken"):
        tab.page.evaluate("name => { document.getElementById('state').className = `pill ${name}`; }", state)
        found = tab.page.evaluate(CONTRAST)
        assert len(found) > 100 and min(found)[0] >= 4.5, min(found)
    tab.close()


def test_it_can_be_used_without_eyes_or_a_mouse(plain_page: Path, browser: Any) -> None:
    """Every control, picture and table has a name; headings skip no level; Tab and Enter open a row."""
    tab = Tab(browser, plain_page.as_uri())
    unnamed = "() => [...document.querySelectorAll('canvas, table')].filter((each) => !each.ariaLabel).length"
    unlabeled = "() => [...document.querySelectorAll('input, select')].filter((each) => !each.labels.length).length"
    assert tab.page.evaluate(unnamed) == tab.page.evaluate(unlabeled) == 0
    tab.page.locator("#filter").focus()
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    assert tab.page.locator("#list details[open] pre.prompt").text_content() == "prompt 0"
    headings = "() => [...document.querySelectorAll('h1, h2, h3, h4')].map((each) => Number(each.tagName[1]))"
    levels = tab.page.evaluate(headings)
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
    assert tab.page.locator("html").get_attribute("lang") == "en"
    tab.close()


def test_paper_is_white(plain_page: Path, browser: Any) -> None:
    """A page that is dark on the screen is printed in the light colours, and nothing is cut off at the right."""
    tab = Tab(browser, plain_page.as_uri(), scheme="dark", width=794)  # A4
    color = "() => getComputedStyle(document.documentElement).getPropertyValue('--text')"
    dark = tab.page.evaluate(color)
    tab.page.emulate_media(media="print")
    tab.page.evaluate("() => { window.dispatchEvent(new Event('beforeprint')); }")
    assert tab.page.evaluate(color) != dark and not tab.page.locator("nav").is_visible()
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 794
    assert min(tab.page.evaluate(CONTRAST))[0] >= 4.5
    tab.page.emulate_media(media="screen")
    tab.page.evaluate("() => { window.dispatchEvent(new Event('afterprint')); }")
    assert tab.page.evaluate(color) == dark and tab.troubles == []
    tab.close()


def test_who_reads_a_row_is_not_disturbed(plain_page: Path, tmp_path: Path, browser: Any) -> None:
    """New numbers come while a row is open: the list stays, and a button shows the newer rows."""
    found = re.search(r'id="data">(.*?)</script>', plain_page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    data = json.loads(found[1]) | {"live_secs": 0.05}
    data["status"]["done"] = False
    first, later = dict(data, rows=data["rows"][10:]), dict(data)
    context = browser.new_context()
    page = context.new_page()
    answers = [first]
    html = to_html(first, "a", is_served=True)
    page.route("http://page.test/", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.route("http://page.test/data.json", lambda route: route.fulfill(json=answers[-1]))
    page.goto("http://page.test/")
    page.locator("#list summary").first.click()
    page.locator("#workers-summary").click()
    answers.append(later)
    page.locator("#newer").wait_for()
    assert page.locator("#found").inner_text() == "40 rows found"
    opened = page.locator("#list details[open]")
    assert opened.count() == 1 and opened.get_attribute("data-row") == "10.0"
    page.locator("#newer").click()
    assert (
        page.locator("#list details").first.get_attribute("data-row") == "0.0"
        and not page.locator("#newer").is_visible()
    )
    assert page.locator("#workers").is_visible(), "what was opened stays open"
    answers.append(first)
    page.locator("#found").filter(has_text="30 rows found").wait_for()
    context.close()
