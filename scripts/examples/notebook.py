"""A run from Python: labels for the demo reviews, and how often each was given.

From the repository's root, after scripts/demo-model: python scripts/examples/notebook.py
"""

from collections import Counter

from job import RunConfig, run

config = RunConfig(
    model=".models/SmolLM2-135M-Instruct",
    dataset="scripts/demo-data/reviews-200.jsonl",
    output=".demo/notebook",
    id_column="id",
    chat=False,
    prompt_template="Review: {{ text }}\nSentiment:",
    choices=[" positive", " negative", " neutral"],
)

if __name__ == "__main__":
    result = run(config)
    print(result.exit_code, f"{result.counts.num_rows} rows")
    print(Counter(result.dataset()["completion"]))
