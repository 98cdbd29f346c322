"""Silences the libraries unless the user asks for their messages."""

import logging
import os
import warnings


def silence_libraries(*, verbose: bool) -> None:
    """Limit the messages of transformers, datasets, huggingface-hub and DeepSpeed. Call before they are imported.

    Their progress bars are hidden, too: they show one per process and file, we show one per launch.
    """
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
