"""The stages in the order of their value: what comes first is still measured when time is short."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EIGHT_B, SMALL = "llama-3.1-8b", "smollm2-135m"
TINY = {"shape": "tiny-llama", "rows": 3, "longest": 12, "num_new": 4}
TINY_STEPS = {"shape": "tiny-llama", "rows": 3, "context": 12, "num_steps": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One thing to find out."""

    name: str
    finds: str
    """What it finds out."""
    limit_secs: int
    module: str
    """Its ``main`` is called."""
    values: Mapping[str, Any] = field(default_factory=dict)
    rehearsal: Mapping[str, Any] = field(default_factory=dict)
    """What differs from ``values`` in a rehearsal."""


def _throughput(system: str, shape: str, rows: int, longest: int, limit_secs: int, finds: str) -> Stage:
    values = {"system": system, "shape": shape, "rows": rows, "longest": longest, "num_new": 128}
    tiny = {**TINY, "shape": "tiny-qwen3" if shape.startswith("qwen3") else "tiny-llama"}
    if system == "generate_batch":
        tiny["options"] = {"num_blocks": 8, "max_batch_tokens": 64}
    return Stage(
        name=f"{system.replace('_', '-')}-{shape}",
        finds=finds,
        limit_secs=limit_secs,
        module="gpu_stages.throughput",
        values=values,
        rehearsal=tiny,
    )


def _quantized(scheme: str) -> Stage:
    values = {"shape": EIGHT_B, "rows": 256, "context": 1152, "num_steps": 40, "quantized": scheme, "variants": ["all"]}
    return Stage(
        name=f"decode-{EIGHT_B}-{scheme}",
        finds=f"ms of a decode step with layers in {scheme}",
        limit_secs=60,
        module="gpu_stages.decode_steps",
        values=values,
        rehearsal=TINY_STEPS,
    )


STAGES = (
    Stage(
        name="environment", finds="versions, card, driver, compilers", limit_secs=90, module="gpu_stages.environment"
    ),
    Stage(
        name="ceilings",
        finds="bytes per second of a copy, operations per second of a product",
        limit_secs=60,
        module="gpu_stages.ceilings",
        values={"copy_bytes": 2**30, "width": 8192, "launches": 1000},
        rehearsal={"copy_bytes": 2**16, "width": 64, "launches": 10},
    ),
    Stage(
        name="kernels",
        finds="whether the kernels are right: their tests, compiled, in all precisions",
        limit_secs=150,
        module="gpu_stages.kernels",
        values={"files": ["tests/test_kernels.py", "tests/test_fused.py"], "cases": 60, "workers": 12},
        rehearsal={"expression": "test_a_row_does_not or test_gates_equal", "cases": 1, "workers": 1},
    ),
    Stage(
        name="parity",
        finds="whether tokens in float32 equal transformers'",
        limit_secs=120,
        module="gpu_stages.parity",
        values={
            "architectures": ["llama", "qwen2", "qwen3", "gemma2", "mistral", "gpt_neox", "opt"],
            "lengths": [1, 5, 17, 40, 60, 60, 300],
            "num_new": 12,
            "variants": {
                "all rows": {},
                "chunks": {"max_batch_rows": 4, "max_batch_tokens": 64},
                "without overlap": {"overlap": False},
            },
        },
        rehearsal={
            "architectures": ["llama", "gemma2"],
            "lengths": [1, 5, 20],
            "num_new": 4,
            "variants": {
                "chunks": {"max_batch_rows": 2, "max_batch_tokens": 8},
                "overlapped": {"overlap": True},
            },
        },
    ),
    Stage(
        name="tasks",
        finds="whether grammars, draws, penalties and scores are right when recorded, overlapped and fused",
        limit_secs=90,
        module="gpu_stages.tasks",
        values={
            "architectures": ["llama", "gemma2"],
            "variants": {"all rows": {}, "chunks": {"max_batch_rows": 4, "max_batch_tokens": 32}},
        },
        rehearsal={"architectures": ["llama"], "variants": {"overlapped": {"overlap": True}}},
    ),
    Stage(
        name="attention",
        finds="attention against the bandwidth, and against torch's on contiguous keys",
        limit_secs=90,
        module="gpu_stages.attention",
        values={
            "shapes": [EIGHT_B, SMALL],
            "decode": [[256, 1024], [512, 512], [16, 4096], [1, 8192]],
            "prompts": [[4, 1024], [1, 4096], [16, 256]],
            "splits": [256, 512, 2048],
        },
        rehearsal={"shapes": ["tiny-llama"], "decode": [[2, 70]], "prompts": [[1, 20]], "splits": [64]},
    ),
    Stage(
        name=f"decode-{EIGHT_B}",
        finds="ms of a decode step, with and without recording, overlap and fusion",
        limit_secs=120,
        module="gpu_stages.decode_steps",
        values={"shape": EIGHT_B, "rows": 256, "context": 1152, "num_steps": 40},
        rehearsal=TINY_STEPS,
    ),
    _throughput("ours", EIGHT_B, 512, 1024, 100, "tokens per second of the job's engine"),
    _throughput("generate_batch", EIGHT_B, 512, 1024, 100, "the same of transformers' continuous batching"),
    Stage(
        name="end-to-end",
        finds="job run from JSON lines to Parquet; killed, resumed, verified",
        limit_secs=120,
        module="gpu_stages.end_to_end",
        values={"shape": SMALL, "rows": 4000, "rows_per_shard": 500, "num_new": 64, "options": []},
        rehearsal={
            "shape": "tiny-llama",
            "rows": 96,
            "rows_per_shard": 8,
            "num_new": 8,
            "options": ["--max-batch-rows", "4"],
        },
    ),
    _throughput("ours", SMALL, 2048, 300, 60, "tokens per second of the job's engine"),
    _throughput("generate_batch", SMALL, 2048, 300, 90, "the same of transformers' continuous batching"),
    Stage(
        name="engine-tests",
        finds="tests/test_cuda.py: float32 against transformers, recorded against launched",
        limit_secs=150,
        module="gpu_stages.kernels",
        values={"files": ["tests/test_cuda.py"], "cases": 0, "workers": 3},
        rehearsal={"workers": 1},
    ),
    Stage(
        name=f"profile-{EIGHT_B}",
        finds="share of gaps and host waits in decode steps; a trace",
        limit_secs=90,
        module="gpu_stages.profile",
        values={"shape": EIGHT_B, "rows": 256, "context": 512, "num_steps": 10, "trace": "{OUT}/trace.json.gz"},
        rehearsal=TINY_STEPS,
    ),
    *(_quantized(scheme) for scheme in ("fp8", "int8")),
    _throughput("ours", "qwen3-8b", 512, 1024, 100, "tokens per second of the job's engine"),
    Stage(
        name=f"decode-{SMALL}",
        finds="ms of a decode step, with and without recording, overlap and fusion",
        limit_secs=90,
        module="gpu_stages.decode_steps",
        values={"shape": SMALL, "rows": 512, "context": 400, "num_steps": 100},
        rehearsal=TINY_STEPS,
    ),
    _throughput("generate", SMALL, 256, 300, 90, "the same of transformers' static batches"),
    _throughput("generate", EIGHT_B, 128, 1024, 90, "the same of transformers' static batches"),
    _throughput("generate_batch", "qwen3-8b", 512, 1024, 100, "the same of transformers' continuous batching"),
    Stage(
        name="injection",
        finds="which architectures DeepSpeed's kernel injection serves",
        limit_secs=300,
        module="gpu_stages.injection",
        rehearsal={"architectures": ["llama"]},
    ),
)
