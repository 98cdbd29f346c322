"""What ``--model`` names: a directory with a model, or a Hub id. Explains what else it may be, and what to give."""

import re
from pathlib import Path

from job.errors import UsageError, first_line
from job.wording import unreachable

MODEL_CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def check_name(model: str) -> None:
    """Check what can be seen of the path alone.

    Raises:
        UsageError: it is a file, an adapter, or another directory than that of a model.
    """
    path = Path(model)
    if path.is_file():
        advice = "Convert it to a directory of safetensors." if path.suffix == ".gguf" else f"Name it: {path.parent}."
        raise UsageError(f"--model {model} is a file; it must be the directory of a model. {advice}")
    if not path.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise UsageError(f"--model {model}: there is no such directory. Check the path.")
        if not HUB_ID.fullmatch(model):
            advice = "Write out the variable: nothing replaces it here." if "$" in model else "Check the path."
            raise UsageError(f"--model {model}: there is no such directory, and it cannot be a Hub id. {advice}")
        return
    if (path / MODEL_CONFIG).is_file():
        return
    if (path / ADAPTER_CONFIG).is_file():
        raise UsageError(
            f"--model {model} is an adapter (LoRA or the like), not a whole model. Merge it into its base model first "
            "(peft: merge_and_unload, then save_pretrained), and name the result."
        )
    inside = sorted(str(found.parent) for found in path.glob(f"*/{MODEL_CONFIG}"))
    inside += sorted(str(found.parent) for found in path.glob(f"snapshots/*/{MODEL_CONFIG}"))  # a repository in a cache
    advice = f"Perhaps you mean {inside[-1]}." if inside else "Name the directory that save_pretrained wrote."
    raise UsageError(f"--model {model} has no {MODEL_CONFIG}, so it is not the directory of a model. {advice}")


def why_unreadable(model: str, error: Exception) -> str:
    """Return why transformers could not read a model's configuration."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

    causes = (error, error.__cause__, error.__context__)
    if not Path(model).is_dir() and any(isinstance(e, LocalEntryNotFoundError | OfflineModeIsEnabled) for e in causes):
        return unreachable("--model", model)
    advice = (
        " Accept its terms on the Hub, and set HF_TOKEN." if any(isinstance(e, GatedRepoError) for e in causes) else ""
    )
    return f"--model {model} cannot be read: {first_line(error)}{advice}"
