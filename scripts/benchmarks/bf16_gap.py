"""How far bfloat16 strays: where the engine's token is not the one that float32 would take after the same tokens.

Usage: scripts/bench bf16-gap [NUM_PROMPTS]

The completions of the paged engine in bfloat16 are read by plain transformers in float32, teacher-forced. At each
position where its most likely token is another one, the gap is its logit less that of the engine's token.
"""

import json
import sys
from statistics import median

import torch
from _workload import MODEL, load, load_prompt_ids
from transformers import AutoModelForCausalLM


def main(num_prompts: int = 64, max_new_tokens: int = 64) -> None:
    """Print how many tokens differ, and by what."""
    from job.config import EngineConfig
    from job.engine.paged.engine import PagedEngine
    from job.records import Request
    from job.tasks import Generate, SamplingParams

    loaded, prompts = load(), load_prompt_ids(num_prompts)
    task = Generate(params=SamplingParams(max_new_tokens=max_new_tokens))
    engine = PagedEngine(loaded.model, loaded.shapes, EngineConfig(), loaded.replica)
    for row_idx, ids in enumerate(prompts):
        engine.submit(Request(row_idx=row_idx, sample_idx=0, prompt_ids=ids, task=task))
    generations = []
    while engine.num_pending:
        generations += engine.step()
    oracle = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    gaps, top_two, num_tokens = [], [], 0
    for generation in generations:
        prompt, tokens = list(generation.request.prompt_ids), torch.tensor(generation.token_ids)
        with torch.inference_mode():
            logits = oracle(torch.tensor([[*prompt, *tokens.tolist()]])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2, dim=-1).values
        gap = best[:, 0] - logits.gather(-1, tokens[:, None]).squeeze(-1)
        gaps += gap[gap > 0].tolist()
        top_two += (best[:, 0] - best[:, 1]).tolist()
        num_tokens += len(tokens)
    result = {
        "num_tokens": num_tokens,
        "num_different": len(gaps),
        "share_different": round(len(gaps) / num_tokens, 4),
        "largest_gap": round(max(gaps, default=0), 3),
        "median_gap": round(median(gaps or [0]), 3),
        "median_top_two_gap_of_all": round(median(top_two), 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
