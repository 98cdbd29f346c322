"""What the user should know of adapters, and whether their tokenizer fits the model."""

from collections.abc import Iterator
from pathlib import PurePath

from job.config import RunConfig
from job.data.tokenizer import Tokenizer
from job.engine.model.info import ModelInfo
from job.errors import UsageError


def notes_on_adapters(info: ModelInfo, config: RunConfig, *, is_left_out: bool) -> Iterator[str]:
    """Yield what the user should know of a model's adapters, besides what they are.

    Args:
        is_left_out: whether the user has not named the model.
    """
    adapters, model = info.precision.adapters, config.model.model
    if is_left_out:
        at = f" at commit {info.files.commit[:12]}" if info.files.commit else ""
        yield f"--model is left out: it is {model}{at}, on which adapter {adapters[0].name} was trained"
    for adapter in adapters:
        if not is_left_out and adapter.base is not None and PurePath(adapter.base).name != PurePath(model).name:
            yield f"adapter {adapter.name} was trained on {adapter.base}, and --model is {model}; its layers fit"
        if adapter.files.has("chat_template.jinja") and not adapter.has_tokenizer:
            yield (
                f"adapter {adapter.name} has a chat template without a tokenizer, which is not used: give it as "
                "--chat-template"
            )


def check_vocabulary(info: ModelInfo, tokenizer: Tokenizer) -> None:
    """Check that the model has the tokens of an adapter's tokenizer. Padding is never read.

    Raises:
        UsageError: it has fewer.
    """
    own = [adapter.name for adapter in info.precision.adapters if adapter.has_tokenizer]
    if not own:
        return
    num_rows, inner = info.config.get_text_config().vocab_size, tokenizer.inner
    lacking = {idx: token for token, idx in inner.get_vocab().items() if idx >= num_rows and idx != inner.pad_token_id}
    if lacking:
        raise UsageError(
            f"The tokenizer of --adapter {own[-1]} has {len(lacking)} tokens that the model lacks, such as "
            f"{lacking[min(lacking)]!r}: the model has {num_rows:,} tokens, and the adapter brings no larger "
            "embedding. Save it with save_embedding_layers=True."
        )
