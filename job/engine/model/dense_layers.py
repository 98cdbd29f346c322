"""The dense layers that sentence-transformers puts after the pooling. They compute in float32, on the host."""

import torch

from job.errors import UsageError
from job.remote.model_files import ModelFiles
from job.tasks.head import Head


def dense_layers_of(files: ModelFiles, head: Head | None) -> torch.nn.Module | None:
    """Read the layers that a model's head names; None if there are none.

    Returns:
        A module of [B, D] float32 to [B, E] float32.

    Raises:
        UsageError: their weights cannot be read, or are of another size.
    """
    if head is None or not head.dense:
        return None
    from safetensors.torch import load_file

    files.fetch([layer.weights for layer in head.dense])
    modules: list[torch.nn.Module] = []
    for layer in head.dense:
        linear = torch.nn.Linear(layer.num_in, layer.num_out, bias=layer.has_bias)
        try:
            stored = load_file(files.directory / layer.weights)
            linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in stored.items()})
        except Exception as error:  # OSError, SafetensorError, RuntimeError: whatever is wrong with the file
            reason = str(error).strip().splitlines()[-1].strip()
            raise UsageError(f"--model {files.name}: {layer.weights} cannot be used: {reason} Copy it again.") from None
        modules += [linear, getattr(torch.nn, layer.activation)()]
    return torch.nn.Sequential(*modules).eval().requires_grad_(False)
