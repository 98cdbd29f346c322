"""How long it takes to make a quantized checkpoint dense, in how much memory, and what loading it takes from then on.

Usage: scripts/bench converting [NUM_LAYERS]

A random llama in bfloat16 (1.4 GB with 16 layers) is stored as it is, in FP8 (blocks of 128 x 128) and in GPTQ (4 bits,
groups of 128). The two are converted, each in a process of its own. Then each is loaded as ``scripts/bench loading``
does, in one process and in two, with what is converted already.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loading import ROOT, make_model, private_mib, start
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "checkpoint_format": "gptq"}

Tensors = dict[str, torch.Tensor]


def to_fp8(base: str, weight: torch.Tensor) -> Tensors:
    """Quantize in blocks."""
    rows, columns = weight.shape
    blocks = weight.float().view(rows // 128, 128, columns // 128, 128)
    scales = blocks.abs().amax((1, 3)) / 448
    stored = (blocks / scales[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
    return {f"{base}weight": stored, f"{base}weight_scale_inv": scales}


def to_gptq(base: str, weight: torch.Tensor) -> Tensors:
    """Store random integers: only their number counts here."""
    rows, columns = weight.shape
    words = torch.iinfo(torch.int32)
    shape, groups = (columns // 8, rows), columns // 128
    return {
        f"{base}qweight": torch.randint(words.min, words.max, shape, dtype=torch.int32),
        f"{base}qzeros": torch.randint(words.min, words.max, (groups, rows // 8), dtype=torch.int32),
        f"{base}scales": torch.full((groups, rows), 0.01, dtype=torch.float16),
        f"{base}g_idx": torch.arange(columns, dtype=torch.int32) // 128,
    }


def quantized(
    dense: Path, directory: Path, settings: dict[str, Any], to: Callable[[str, torch.Tensor], Tensors]
) -> str:
    """Write a quantized copy of a model."""
    directory.mkdir()
    tensors: Tensors = {}
    for file in dense.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            tensors |= to(name.removesuffix("weight"), tensor) if "_proj" in name else {name: tensor}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((dense / "config.json").read_text(encoding="utf-8"))
    content = json.dumps({**config, "quantization_config": settings})
    (directory / "config.json").write_text(content, encoding="utf-8")
    return str(directory)


def convert(model: str) -> dict[str, Any]:
    """Make a model dense, as the first process of a node does."""
    from job.config import ModelConfig
    from job.engine.model.info import inspect_model
    from job.remote.model_files import ModelFiles

    info = inspect_model(ModelConfig(model=model, dtype="bfloat16"), ModelFiles(name=model), torch.device("cpu"), 1)
    assert info.dense_weights is not None
    before = most = private_mib()
    is_done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_done.is_set():
            most = max(most, private_mib())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    info.dense_weights.check_room()  # reads the files once, for their hashes
    begin = time.monotonic()
    directory = info.dense_weights.directory()
    secs = time.monotonic() - begin
    is_done.set()
    watcher.join()
    num_bytes = sum(path.stat().st_size for path in directory.iterdir())
    largest = max(_sizes(directory))
    return {
        "dense_mb": num_bytes // 10**6,
        "secs": round(secs, 1),
        "mb_per_sec": round(num_bytes / 1e6 / secs),
        "private_mib": most - before,
        "largest_tensor_mib": largest >> 20,
    }


def _sizes(directory: Path) -> list[int]:
    sizes = []
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            sizes += [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
    return sizes


def main(num_layers: int) -> None:
    """Print the figures of each kind."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as made:
        os.environ["JOB_CACHE"] = f"{made}/cache"
        whole = Path(made) / "float32"
        make_model(whole, num_layers)
        dense = Path(made) / "dense"
        quantized(whole, dense, {}, lambda base, weight: {f"{base}weight": weight.bfloat16()})
        config = json.loads((dense / "config.json").read_text(encoding="utf-8"))
        del config["quantization_config"]
        (dense / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}), encoding="utf-8")
        models = {
            "dense": str(dense),
            "fp8": quantized(dense, Path(made) / "fp8", FP8, to_fp8),
            "gptq": quantized(dense, Path(made) / "gptq", GPTQ, to_gptq),
        }
        for name, model in models.items():
            if name != "dense":
                command = [sys.executable, __file__, "convert", model]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
                print(name, "converted:", result.stdout.splitlines()[-1], flush=True)
            for size in (1, 2):
                print(name, f"loaded in {size}:", json.dumps(start(model, "bfloat16", size)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["convert"]:
        print(json.dumps(convert(sys.argv[2])))
    else:
        main(int(*sys.argv[1:] or ["16"]))
