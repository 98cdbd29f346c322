"""Options of other tools (vLLM, SGLang, lm-eval, transformers, datatrove): what each is called here, or why not."""

_NAMES = {
    "--tensor-parallel-size": "tp tp-size tensor-parallel tensor-model-parallel-size mp-size model-parallel-size",
    "--max-new-tokens": "max-tokens max-gen-toks max-gen-len max-completion-tokens max-output-tokens n-predict",
    "--max-model-len": "max-seq-len max-seq-length max-length max-sequence-length context-length ctx-size n-ctx",
    "--max-prompt-tokens": "max-input-length max-input-tokens max-prompt-length truncate-prompt-tokens",
    "--model": "model-id model-name model-name-or-path model-path pretrained repo-id checkpoint",
    "--dataset": "input input-file input-path data data-path data-dir dataset-name dataset-path dataset-id "
    "dataset-repo input-dataset src-dataset prompts prompts-file dataset-file",
    "--dataset-config": "subset dataset-config-name dataset-subset config-name dataset-name-config",
    "--split": "dataset-split",
    "--limit": "limit-rows limit-samples max-samples max-examples max-rows num-rows num-examples num-prompts "
    "max-eval-samples",
    "--output": "output-dir output-path output-file output-folder out out-dir save-dir results-dir output-dataset o",
    "--keep-columns": "columns keep-column",
    "--prompt-column": "text-column input-column question-column",
    "--source-language": "src-lang source-lang",
    "--target-language": "tgt-lang target-lang forced-bos-token forced-bos-token-id",
    "--messages-column": "messages-field conversations-column",
    "--prompt-template": "prompt template prompt-format doc-to-text",
    "--system-prompt": "system-instruction system-message system",
    "--chat": "apply-chat-template use-chat-template",
    "--chat-template-kwargs": "default-chat-template-kwargs chat-template-args chat-template-variables template-kwargs",
    "--examples": "num-fewshot fewshot few-shot fewshot-as-multiturn shots",
    "--num-samples": "n best-of num-return-sequences num-completions num-generations rollouts-per-document",
    "--temperature": "do-sample temp",
    "--repetition-penalty": "repeat-penalty",
    "--num-beams": "beam beams beam-size beam-width use-beam-search",
    "--no-repeat-ngram-size": "no-repeat-ngram no-repeat-n-gram-size",
    "--min-new-tokens": "min-tokens min-length min-completion-tokens",
    "--logit-bias": "logits-bias sequence-bias",
    "--bad-words": "bad-words-ids banned-words bad-word banned-strings",
    "--stop-token-ids": "eos-token-id stop-token-id stop-ids",
    "--stop": "stop-token stop-tokens stop-sequences stop-strings stop-words until stop-sequence",
    "--seed": "random-seed rng-seed",
    "--logprobs": "prompt-logprobs return-logprobs output-scores output-logprobs",
    "--json-schema": "schema json guided-json response-format structured-outputs",
    "--regex": "guided-regex",
    "--choices": "guided-choice labels",
    "--grammar": "guided-grammar",
    "--dtype": "torch-dtype precision fp16 bf16 half",
    "--kv-cache-memory": "gpu-memory-utilization kv-cache-memory-bytes mem-fraction-static gpu-memory-fraction",
    "--max-batch-rows": "batch-size max-num-seqs max-running-requests per-device-eval-batch-size max-batch-size "
    "max-concurrent-requests max-concurrent-generations max-concurrency",
    "--max-batch-tokens": "max-num-batched-tokens chunked-prefill-size max-prefill-tokens",
    "--attention-backend": "attn-implementation attention-implementation attn-backend",
    "--no-cuda-graphs": "enforce-eager disable-cuda-graph",
    "--id-column": "id id-field row-id",
    "--device": "cpu cuda use-cpu use-cuda",
    "--prefill": "assistant-prefix response-prefix assistant-prefill answer-prefix",
    "--last-assistant-turn": "continue-final-message add-generation-prompt",
    "--csv-delimiter": "delimiter sep separator",
    "--csv-encoding": "encoding",
    "--lease-timeout": "heartbeat-timeout",
    "--rows-per-shard": "examples-per-chunk save-every shard-size rows-per-file",
}
"""Our name to the others' that mean the same, or nearly."""

_REASONS = {
    "Use --quantize int8 or fp8: int8 saves memory and is slower, fp8 is for GPUs that multiply in it (Ada, Hopper and "
    "later).": "load-in-8bit quantization quantization-config quantise quantisation quantize-weights torchao-config",
    "4 bits are not offered: what they cost in quality could not be shown yet. Use --quantize int8 or fp8, or a model "
    "that was published in GPTQ, AWQ or MXFP4, which is computed in 16 bits.": (
        "load-in-4bit bnb-4bit bnb-4bit-compute-dtype bnb-4bit-quant-type"
    ),
    "DeepSpeed places the model, one process per GPU. Use --tensor-parallel-size.": (
        "device-map parallelize max-memory offload-folder cpu-offload-gb cpu-offload"
    ),
    "DeepSpeed 0.19.8's injected kernels do not work with transformers 5.23: gpt2, opt, llama, gpt_neox, bloom crash "
    "or are refused, gpt_neo and gptj give wrong tokens, and other architectures get none and are not sharded (tried "
    "on a CPU). Leave it out: layers are sharded by AutoTP, and batches are continuous.": (
        "kernel-inject replace-with-kernel-inject"
    ),
    "DeepSpeed is used for inference only, and needs no configuration. Leave it out.": (
        "deepspeed deepspeed-config ds-config zero-stage"
    ),
    "A model is shared by tensor parallelism only. Use --tensor-parallel-size.": (
        "pp pp-size pipeline-parallel-size enable-expert-parallel ep-size"
    ),
    "Replicas are processes, and each --tensor-parallel-size processes are one replica. Start them with job launch "
    "--gpus N, or on Slurm with job submit --nodes N --gpus-per-node N.": (
        "dp dp-size data-parallel-size num-replicas workers num-workers num-processes num-gpus num-nodes nnodes "
        "nproc-per-node gpus ngpus n-gpus processes nodes gpus-per-node world-size"
    ),
    "Rows are read in order from the first. Write the ones you want to a file, or use --limit.": (
        "offset skip skip-rows start start-idx end end-idx shuffle sample-rows"
    ),
    "Use job preview: it takes the same options, and computes nothing.": "dry-run dryrun plan",
    "Use --reasoning-effort none or high, or the variable of the chat template: --chat-template-kwargs "
    """'{"enable_thinking": false}'.""": "enable-thinking disable-thinking no-think thinking think",
    "Reasoning goes to a column of its own. Use --reasoning-markers to say what marks it, --max-reasoning-tokens to "
    "bound it.": "reasoning-parser think-end-token thinking-token-budget thinking-budget max-thinking-tokens",
    "Use --verbose to see the messages of libraries.": "debug log",
    "There are no tasks to choose or to number: rows come from --dataset, prompts from --prompt-template or "
    "--messages-column, and every process takes its share.": "tasks include-path",
    "Each setting has an option of its own, such as --dtype, --revision, --temperature, --max-new-tokens.": (
        "model-args gen-kwargs generation-config engine-args sampling-params override-generation-config"
    ),
    "It is always on. Leave it out.": "enable-prefix-caching enable-chunked-prefill use-tqdm log-samples write-out",
    "Finished rows are always kept: run the same command again to continue, or use a new --output.": (
        "resume resume-from-checkpoint use-cache overwrite overwrite-output-dir skip-completed force"
    ),
    "The tokenizer is the one in the model's directory.": "tokenizer tokenizer-mode tokenizer-name tokenizer-path",
    "Set the environment variable HF_HOME to choose where the Hub's files are kept.": "download-dir cache-dir",
    "Set the environment variable HF_TOKEN to open gated models.": "token hf-token use-auth-token auth-token",
    "Use --adapter ID_OR_DIR. It is merged into the model when that is loaded.": (
        "lora lora-path lora-modules enable-lora adapter-path peft peft-path adapter-name-or-path"
    ),
    "There is no speculative decoding. Leave it out.": (
        "speculative-config speculative-model num-speculative-tokens draft-model assistant-model"
    ),
    "There is no server: rows are read from --dataset.": "host port served-model-name api-key base-url url",
    "A run writes Parquet to --output; job export writes csv, JSON lines and OpenAI batch output.": (
        "output-format format save-format"
    ),
    "The Hub is not written to. Upload the run directory when it is done.": (
        "push-to-hub hub-model-id hub-dataset-id hf-hub-log-args output-dataset-name"
    ),
    "Progress goes to stderr; --verbose shows more.": (
        "quiet log-level verbosity disable-log-stats disable-log-requests"
    ),
}
"""Why other options do not exist here, or what replaces them."""

_ADVICE = {name: f"Use {ours}." for ours, names in _NAMES.items() for name in names.split()} | {
    name: reason for reason, names in _REASONS.items() for name in names.split()
}

_DTYPES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32"}


def advice_on(option: str) -> str | None:
    """Return what to do in place of an option that does not exist here; None if it is of no tool that is known.

    >>> advice_on("--tp"), advice_on("max_tokens"), advice_on("--colour")
    ('Use --tensor-parallel-size.', 'Use --max-new-tokens.', None)
    """
    return _ADVICE.get(option.lstrip("-").lower().replace("_", "-"))


def advice_on_value(option: str, value: str) -> str | None:
    """Return what to write in place of a value that is another tool's name for one of ours.

    >>> advice_on_value("dtype", "torch.half"), advice_on_value("dtype", "int8")
    ("Write 'float16'.", None)
    """
    if option != "dtype":
        return None
    name = value.lower().removeprefix("torch.")
    ours = _DTYPES.get(name) or (name if name != value and name in _DTYPES.values() else None)
    return ours and f"Write {ours!r}."
