"""Silence for the libraries, unless the user wants to hear them."""

import logging
import os
import warnings


def silence_libraries(*, verbose: bool) -> None:
    """Set what transformers, datasets, huggingface-hub and DeepSpeed say. Call before they are imported.

    Their progress bars are theirs per process and file; ours is one per launch.
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
    """Switch off the bars that no environment variable switches off. Call after the libraries are imported."""
    if verbose:
        return
    import datasets
    import transformers

    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it logs as an error it raises, too: we tell that
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
