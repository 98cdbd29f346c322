"""The outcome of recomputing rows as text for a terminal."""

import math
from collections.abc import Iterator, Sequence

from job.errors import shorten
from job.report.audit import DIFFERENT, EQUAL, FAILED, NEAR_TIE, UNCLEAR, VERDICTS, Audit, Verdict
from job.report.tables import table_of

MAX_ROWS = 20
"""How many rows are shown; --json has all."""

WORDS = {EQUAL: "equal", NEAR_TIE: "near tie", DIFFERENT: "different", UNCLEAR: "unclear", FAILED: "failed"}

UNTOLD = "a run with --logprobs keeps the tokens that would tell; so may --max-batch-rows and --dtype as in the run"


def describe_audit(output: str, audit: Audit) -> str:
    """Return the report; the last line says what it means."""
    counts = audit.counts
    shown = [verdict for verdict in audit.verdicts if verdict.outcome != EQUAL]
    shown.sort(key=lambda verdict: (VERDICTS.index(NEAR_TIE) == VERDICTS.index(verdict.outcome), verdict.row_idx))
    more = len(shown) - MAX_ROWS
    left_out = {"error rows": audit.num_errors, "rows copied from another run": audit.num_copied}
    given = [f"{number:,} {what}" for what, number in left_out.items() if number]
    without = f"; left out: {', '.join(given)}" if given else ""
    return "\n".join(
        [
            output,
            f"  recomputed {len(audit.verdicts):,} of {audit.num_finished:,} finished rows{without}",
            f"  how        {audit.how}",
            f"  equal      {counts[EQUAL]:,}",
            f"  near tie   {counts[NEAR_TIE]:,} (gaps up to {audit.tie_gap:g} logits)",
            f"  different  {counts[DIFFERENT]:,}",
            *([f"  unclear    {counts[UNCLEAR]:,} ({UNTOLD})"] if counts[UNCLEAR] else []),
            *([f"  failed     {counts[FAILED]:,}"] if counts[FAILED] else []),
            *_table(audit),
            *(f"  {_line(verdict)}" for verdict in shown[:MAX_ROWS]),
            *([f"  and {more:,} more; --json lists all"] if more > 0 else []),
            _conclusion(audit),
        ]
    )


def _table(audit: Audit) -> Sequence[str]:
    shown = [name for name in VERDICTS if name != UNCLEAR or audit.counts[UNCLEAR]]
    header = ["host", "worker", *(WORDS[name] for name in shown)]
    rows = [
        [host, worker, *(f"{counts[name]:,}" for name in shown)] for (host, worker), counts in audit.workers.items()
    ]
    return table_of(header, rows) if rows else []


def _line(verdict: Verdict) -> str:
    name = f"row {verdict.row_idx}" + (f", sample {verdict.sample_idx}" if verdict.sample_idx else "")
    return f"{name}: {WORDS[verdict.outcome]}{''.join(f', {part}' for part in _parts(verdict))}"


def _parts(verdict: Verdict) -> Iterator[str]:
    if verdict.position is not None:
        yield f"from token {verdict.position} on" if verdict.outcome == DIFFERENT else f"at token {verdict.position}"
    if verdict.gap is not None:
        yield "a token that cannot be chosen" if math.isinf(verdict.gap) else f"gap {verdict.gap:.2g}"
    if verdict.num_ties > 1:
        yield f"{verdict.num_ties} ties"
    if verdict.detail:
        yield shorten(verdict.detail)
    yield f"on {verdict.host}" + (f" ({verdict.worker})" if verdict.worker != verdict.host else "")


def _conclusion(audit: Audit) -> str:
    counts = audit.counts
    if not audit.verdicts:
        return "No row was recomputed: none is finished."
    if counts[DIFFERENT]:
        return "Rows differ by more than rounding explains: do not trust what these workers wrote before you know why."
    if counts[FAILED]:
        return "Some rows could not be recomputed, as shown above."
    if counts[UNCLEAR]:
        return "No row is known to differ, but some are unclear, as shown above."
    return (
        "All rows that were recomputed are what the run says, up to near ties."
        if counts[NEAR_TIE]
        else ("All rows that were recomputed are what the run says.")
    )
