"""The most memory that each process of a replica holds on its host while a model is loaded.

Usage: scripts/bench loading [MODEL] [DTYPE] [TENSOR_PARALLEL_SIZE] [QUANTIZE] [ADAPTER]

Without a model, a random one of 1.5 GB in float32 is made. On a CPU, the weights of a process are themselves in the
memory of the host: ``private`` minus ``weights`` and ``before`` is what loading takes on top of them. Pages of the
mapped file do not count as private: the processes of a machine share them, and the system takes them back when memory
is short.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def private_mib() -> int:
    """Return the anonymous resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon:"))


def load(model: str, dtype: str, size: int, scheme: str | None, adapter: str) -> dict[str, object]:
    """Load a model as the job does, as one process of a replica."""
    from job.config import ModelConfig
    from job.engine.model.deepspeed_setup import import_deepspeed
    from job.engine.model.info import inspect_model
    from job.engine.model.loading import load_model
    from job.launch.environment import read_process_info
    from job.launch.replica import Replica
    from job.remote.model_files import ModelFiles

    import_deepspeed()
    replica = Replica(read_process_info(os.environ, size), device="cpu")
    config = ModelConfig(model=model, dtype=dtype, quantize=scheme)
    info = inspect_model(config, ModelFiles.local(model, [adapter] if adapter else []), replica.device, size)
    import transformers.modeling_utils  # noqa: F401 (it imports SciPy, if that is there)

    before = most = private_mib()
    is_loaded = threading.Event()

    def watch() -> None:
        nonlocal most
        while not is_loaded.is_set():
            most = max(most, private_mib())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.monotonic()
    loaded = load_model(config, info, replica, [])
    secs = time.monotonic() - begin
    is_loaded.set()
    watcher.join()
    parts = {id(part): part.nbytes for part in loaded.module.parameters()}  # experts and scales are buffers
    parts |= {id(part): part.nbytes for part in loaded.module.buffers() if scheme is not None}
    weights = sum(parts.values())
    figures = {"rank": replica.info.rank, "before": before, "private": most, "weights": weights >> 20}
    replica.close()
    return {**figures, "secs": round(secs, 1)}


def make_model(directory: Path, num_layers: int = 8) -> str:
    """Write a random model of 1.5 GB with a small vocabulary, or a part of it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": num_layers, "vocab_size": 512}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    config = AutoConfig.for_model("llama", **sizes, **heads)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return str(directory)


def start(model: str, dtype: str, size: int, scheme: str | None = None, adapter: str = "") -> list[dict[str, object]]:
    """Load a model in processes of its own, and return the figures of each."""
    command = [sys.executable, __file__, model, dtype, str(size), scheme or "", adapter, "process"]
    launch = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    launch["MASTER_PORT"] = "29517"
    processes = []
    for rank in range(size):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if size > 1:
            environment |= {**launch, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT))
    outputs = [process.communicate()[0] for process in processes]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main(model: str, dtype: str, size: int, scheme: str | None, adapter: str) -> None:
    """Print the figures of each process."""
    with tempfile.TemporaryDirectory() as made:
        model = str(Path(model).absolute()) if model else make_model(Path(made))
        print(json.dumps({"unit": "MiB", "processes": start(model, dtype, size, scheme, adapter)}))


if __name__ == "__main__":
    model, dtype, size, scheme, adapter = (*sys.argv[1:6], *("", "bfloat16", "1", "", "")[len(sys.argv[1:6]) :])
    if sys.argv[6:] == ["process"]:
        print(json.dumps(load(model, dtype, int(size), scheme or None, adapter)), flush=True)
        os._exit(0)  # as the command line does
    main(model, dtype, int(size), scheme or None, adapter)
