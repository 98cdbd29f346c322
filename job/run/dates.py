"""The date of a run, for chat templates that write it into prompts: the same for all launches, days and nodes."""

import contextlib
import datetime
from dataclasses import replace

from job.config import RunConfig
from job.errors import UsageError
from job.output.parts.manifest import Manifest


def dated(
    config: RunConfig, found: Manifest | None, *, is_read: bool
) -> tuple[RunConfig, datetime.date | None, tuple[str, ...]]:
    """Return the configuration with the date that the manifest has, the date for templates, and notes.

    Args:
        found: the manifest in the run directory, if there is one already.
        is_read: whether the chat template reads the date. If not, a run has none.

    Raises:
        UsageError: ``--date`` would have no effect.
    """
    if not is_read:
        if config.prompt.date is not None and found is None:
            raise UsageError("--date was given, but no chat template that reads the date is used. Leave it out.")
        return config, None, ()
    recorded = None if found is None else found.section("prompt")["date"]
    if found is not None and recorded is None:  # versions 0.1 and 0.2 read the clock
        return config, _day_of(found), ()
    day = config.prompt.date or recorded or datetime.datetime.now(datetime.UTC).date().isoformat()
    note = f"the chat template writes the date into prompts: {day} in the whole run; --date sets another"
    dated_config = replace(config, prompt=replace(config.prompt, date=day))
    return dated_config, datetime.date.fromisoformat(day), () if recorded else (note,)


def _day_of(found: Manifest) -> datetime.date:
    """Return the day on which a run was first started."""
    with contextlib.suppress(ValueError):
        return datetime.date.fromisoformat(str(found.about.get("created"))[:10])
    return datetime.datetime.now(datetime.UTC).date()
