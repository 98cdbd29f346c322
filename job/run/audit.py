"""An audit of a run: a sample of its finished rows, recomputed and compared, row by row."""

from collections.abc import Callable

from job.errors import UsageError
from job.launch.activity import doing, telling_what_takes_long
from job.output.looking.found import FoundRun
from job.output.looking.sampled_rows import Sample, draw_rows
from job.report.audit import TIE_GAPS, Audit
from job.run.computer import Computer
from job.run.identity import dtype_of
from job.run.recompute import Asked, ask_again, open_run
from job.run.retracing import Retracing


def drawn(run: FoundRun, number: int, seed: int) -> Sample:
    """Draw finished rows of a run.

    Raises:
        UsageError: it has none.
        JobError: a part cannot be read.
    """
    doing("reading which rows are finished")
    sample = draw_rows(run, number, seed)
    if not sample.rows:
        where = run.directory.store.describe()
        left = {"error rows": sample.num_errors, "copied from another run": sample.num_copied}
        given = [f"{number:,} rows in its parts are {what}" for what, number in left.items() if number]
        what = " and ".join(given) or "it has no part yet"
        names = " and ".join(sample.copied_from)
        instead = f" Use job verify --recompute on the run that computed them: {names}." if names else ""
        raise UsageError(f"{where} has no finished row to recompute: {what}.{instead}")
    return sample


def audit(
    run: FoundRun,
    sample: Sample,
    asked: Asked,
    *,
    tie_gap: float | None,
    note: Callable[[str], None],
    tell: Callable[[int], object] = lambda number: None,
) -> Audit:
    """Recompute a sample and compare.

    Args:
        tie_gap: in logits; None: by the less precise of the two dtypes.
        note: prints a line for the user.
        tell: called with the number of rows that have just been computed.

    Raises:
        UsageError: the run's dataset or model is no longer what it was, or is missing.
        JobError: one of them cannot be read or loaded.
    """
    with telling_what_takes_long(note):
        examined, replica = open_run(run, asked, note)
        computer = Computer.load(examined, replica, note)
        again = ask_again(examined, computer.modes, sample.rows)
    requests = [each.request for each in again if each.request is not None]
    found = {generation.request.key: generation for generation in computer.run(requests, tell)}
    gap = tie_gap or max(TIE_GAPS[dtype] for dtype in (dtype_of(run.manifest), examined.model_info.dtype))
    verdicts = [Retracing(computer, each, gap).verdict(found.get(each.row.completion.key)) for each in again]
    return Audit(
        verdicts=verdicts,
        num_finished=sample.num_finished,
        num_errors=sample.num_errors,
        num_copied=sample.num_copied,
        tie_gap=gap,
        how=computer.how,
    )
