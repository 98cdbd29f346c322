"""The formats of quantized weights that are not converted: what each is called, and what helps instead."""

from collections.abc import Mapping

OTHERS: Mapping[str, str] = {
    "aqlm": "its codebooks need kernels of a GPU",
    "auto-round": "export it again as auto_gptq, auto_awq or llm_compressor",
    "bitnet": "its ternary weights are meant for inputs that are rounded, too",
    "eetq": "its layers are in the order of a GPU's kernels",
    "fbgemm_fp8": "look for the same model in compressed-tensors or fp8",
    "gguf": "convert it to a directory of safetensors: transformers reads it with GgufConfig(dequantize=True)",
    "higgs": "where a GPU has its kernels, transformers' model.dequantize() and save_pretrained make it dense",
    "hqq": "where hqq is installed, dequantize its layers and call save_pretrained",
    "modelopt": "look for the same model in compressed-tensors or fp8",
    "nvfp4": "look for the same model in compressed-tensors or fp8",
    "quanto": "where optimum-quanto is installed, dequantize its layers and call save_pretrained",
    "quark": "export it again as a dense model",
    "spqr": "its layers are in the order of a GPU's kernels",
    "torchao": "where torchao is installed, dequantize its tensors and call save_pretrained",
    "vptq": "its codebooks need kernels of a GPU",
}
"""By the ``quant_method`` of a configuration: what to know or to do."""
