"""Whether a model overflows its dtype, checked with a short text before the first row.

float16 ends at 65,504; bfloat16 and float32 end at 3.4e38. A model that was trained in bfloat16 may have activations
beyond float16's range: then every row would be an error.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from job.engine.failures import describe_failure
from job.engine.model.loading import LoadedModel
from job.launch.replica import Replica

NUM_TOKENS = 64
"""Length of the text: the first token, and some after it, have the largest activations (Sun et al. 2024)."""


def find_overflow(model: LoadedModel, replica: Replica) -> str | None:
    """Return where the model first computes a non-finite number, or None. All ranks must call this together.

    Looks at every layer, not only at the logits: a model that bounds its logits, such as Gemma 2, hides it there.

    Raises:
        JobError: a device or a connection broke.
    """
    failure = None
    try:
        with torch.inference_mode(), _outputs(model.module) as outputs:
            ids = _token_ids(model.module).to(replica.device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            inputs |= {} if model.decoder is None else {"decoder_input_ids": ids}
            logits = model.module(**inputs, use_cache=False).logits
    except Exception as error:  # whatever a model raises when it is called without its cache; the engines report it
        failure = describe_failure(error)
    if any(replica.gather_status(failure)):  # a rank that failed alone must not go on while others wait for it
        return None
    # The largest of each token: models rule tokens out with minus infinity.
    outputs.append(("its logits are", logits.amax(dim=-1)))
    return next((name for name, tensor in outputs if not tensor.isfinite().all()), None)


def _token_ids(module: Any) -> torch.Tensor:
    """Return [1, NUM_TOKENS] int64."""
    text = module.config.get_text_config()
    ids = torch.randint(text.vocab_size, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    if isinstance(text.bos_token_id, int):
        ids[0, 0] = text.bos_token_id
    return ids


@contextlib.contextmanager
def _outputs(module: torch.nn.Module) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Collect what each layer returns, with a name."""
    outputs: list[tuple[str, torch.Tensor]] = []

    def hook_of(name: str) -> Any:
        def hook(layer: Any, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            outputs.append((name, hidden.detach()))

        return hook

    layers = enumerate(layer for part in _stacks(module) for layer in _layers(part))
    hooks = [layer.register_forward_hook(hook_of(f"the output of layer {idx} is")) for idx, layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _stacks(module: Any) -> list[Any]:
    """Return the parts of a model that are stacks of layers: of an encoder-decoder, both."""
    return [module.get_encoder(), module.get_decoder()] if module.config.is_encoder_decoder else [module]


def _layers(module: Any) -> torch.nn.ModuleList:
    """Return the decoder layers, which every architecture keeps in a list of ``num_hidden_layers`` modules."""
    text = module.config.get_text_config()
    names = ("num_hidden_layers", "num_decoder_layers", "decoder_layers")
    numbers = {getattr(text, name, None) for name in names}
    lists = (part for part in module.modules() if isinstance(part, torch.nn.ModuleList) and len(part) in numbers)
    return next(lists, torch.nn.ModuleList())
