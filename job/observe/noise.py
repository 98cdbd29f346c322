"""Silences the libraries unless the user asks for their messages, and leaves secrets out of what they say."""

import contextlib
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from job.wording import redacted


def silence_libraries(*, verbose: bool) -> None:
    """Limit the messages of transformers, datasets, huggingface-hub and DeepSpeed. Call before they are imported.

    Their progress bars are hidden, too: they show one per process and file, we show one per launch.
    """
    _redact_logs()
    if verbose:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def silence_progress_bars(*, verbose: bool) -> None:
    """Turn off the progress bars that no environment variable controls. Call after the libraries are imported."""
    if verbose:
        return
    import datasets
    import transformers

    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # its logged errors are also raised, and we report those
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


@contextlib.contextmanager
def quiet_libraries(*, verbose: bool) -> Iterator[None]:
    """Turn off their progress bars and warnings in here only: the process is not ours alone."""
    import datasets
    import transformers

    log, datasets_log = transformers.utils.logging, logging.getLogger("datasets")
    levels = log.get_verbosity(), datasets_log.level
    has_bars = not datasets.are_progress_bars_disabled(), log.is_progress_bar_enabled()
    silence_progress_bars(verbose=verbose)
    try:
        yield
    finally:
        log.set_verbosity(levels[0])
        datasets_log.setLevel(levels[1])
        if has_bars[0]:
            datasets.enable_progress_bars()
        if has_bars[1]:
            log.enable_progress_bar()


def redact_tracebacks() -> None:
    """Leave secrets out of the tracebacks of bugs: messages of libraries have whole addresses, signatures included."""

    def show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, where))))

    sys.excepthook = show
    threading.excepthook = lambda args: show(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)


def _redact_logs() -> None:
    """Leave secrets out of every line that a library logs: with HF_DEBUG, that is each request with its address."""
    make: Any = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = make(*args, **kwargs)
        with contextlib.suppress(TypeError, ValueError):  # the text does not fit its values: logging reports that
            record.msg, record.args = redacted(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info))).rstrip()
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)
