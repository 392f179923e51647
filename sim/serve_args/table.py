"""What each option of `vllm serve` 0.32.0 means to the simulator: one class for each, none left out.

The names, and how many values they take, are in options.json, which `python -m validation serve-options`
compares with vLLM's own parser. Here every one of them is classified:

    ENGINE    sets a key of the `engine:` section (or the model); those of speculative decoding together
              (`sim.serve_args.drafts`)
    REFUSED   changes block ids, hits, scheduling or the pool's size in a way that is not simulated;
              harmless values of it are let through
    MEMORY    changes only what else lies in the GPU's memory: refused while the pool's size is estimated
    IGNORED   changes nothing here, by reason
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("options.json")

#: Options of speculative decoding, which `sim.serve_args.drafts` reads together: the short ones stand for
#: keys of the first.
SPECULATIVE: dict[str, str] = {
    "--speculative-config": "",
    "--spec-method": "method",
    "--spec-model": "model",
    "--spec-tokens": "num_speculative_tokens",
}

#: Option -> (key of `engine:`, how its value is read). The model has no key there.
ENGINE: dict[str, tuple[str, str]] = {
    "--model": ("model", "text"),
    "--dtype": ("dtype", "dtype"),
    "--max-model-len": ("max_model_len", "length"),
    "--quantization": ("quantization", "quantization"),
    "--enforce-eager": ("enforce_eager", "flag"),
    "--tensor-parallel-size": ("tensor_parallel_size", "int"),
    "--block-size": ("block_size", "int"),
    "--gpu-memory-utilization": ("gpu_memory_utilization", "float"),
    "--kv-cache-memory-bytes": ("kv_cache_memory_bytes", "human_int"),
    "--kv-cache-dtype": ("kv_cache_dtype", "kv_cache_dtype"),
    "--attention-backend": ("attention_backend", "backend"),
    "--attention-config": ("attention_backend", "backend_config"),
    "--num-gpu-blocks-override": ("num_gpu_blocks", "int"),
    "--enable-prefix-caching": ("enable_prefix_caching", "flag"),
    "--prefix-cache-retention-interval": ("prefix_cache_retention_interval", "int_or_none"),
    "--mamba-cache-mode": ("mamba_cache_mode", "text"),
    "--mamba-cache-dtype": ("mamba_cache_dtype", "text"),
    "--mamba-ssm-cache-dtype": ("mamba_ssm_cache_dtype", "text"),
    "--mamba-block-size": ("mamba_block_size", "int_or_none"),
    "--prefix-match-unit": ("prefix_match_unit", "int_or_none"),
    "--max-num-batched-tokens": ("max_num_batched_tokens", "human_int"),
    "--max-num-scheduled-tokens": ("max_num_scheduled_tokens", "human_int_or_none"),
    "--max-num-seqs": ("max_num_seqs", "int"),
    "--max-num-active-seqs": ("max_num_active_seqs", "int_or_none"),
    "--long-prefill-token-threshold": ("long_prefill_token_threshold", "int"),
    "--long-prefill-token-threshold-adaptive": ("long_prefill_token_threshold_adaptive", "flag"),
    "--scheduling-policy": ("policy", "text"),
    "--enable-chunked-prefill": ("enable_chunked_prefill", "flag"),
    "--scheduler-reserve-full-isl": ("scheduler_reserve_full_isl", "flag"),
    "--watermark": ("watermark", "float"),
    "--disable-hybrid-kv-cache-manager": ("disable_hybrid_kv_cache_manager", "flag"),
    "--async-scheduling": ("async_scheduling", "flag"),
    "--performance-mode": ("performance_mode", "text"),
    "--hf-config-path": ("model", "config_path"),
    "--config": ("", "config_file"),
}


@dataclass(frozen=True)
class Refusal:
    """An option that is refused.

    Attributes:
        why: a clause that follows the option's name.
        harmless: values (lower case, as text) that change nothing.
        hint: what to do instead.
    """

    why: str
    harmless: tuple[str, ...] = ()
    hint: str | None = None


_ONE = ("1",)
_OFF = ("false", "0", "none", "null", "0.0", "[]", "{}", "")

REFUSED: dict[str, Refusal] = {
    "--diffusion-config": Refusal("diffusion decoding is not simulated", _OFF),
    "--kv-transfer-config": Refusal("KV connectors are not simulated", _OFF),
    "--kv-offloading-size": Refusal("offloading of KV blocks is not simulated", _OFF),
    "--ec-transfer-config": Refusal("transfer of encoder outputs is not simulated", _OFF),
    "--pipeline-parallel-size": Refusal("pipeline parallelism is not simulated", _ONE),
    "--data-parallel-size": Refusal(
        "data parallelism is not simulated",
        _ONE,
        "leave it out and give `replicas` in the CONFIG (docs/fleet.md), or simulate one replica's share",
    ),
    "--decode-context-parallel-size": Refusal("context parallelism is not simulated", _ONE),
    "--prefill-context-parallel-size": Refusal("context parallelism is not simulated", _ONE),
    "--enable-elastic-ep": Refusal("elastic expert parallelism changes the number of engines", _OFF),
    "--headless": Refusal("a headless process runs no scheduler", _OFF),
    "--scheduler-cls": Refusal("a scheduler of your own is not simulated", _OFF),
    "--prefill-schedule-interval": Refusal("prefills in some steps only are not simulated", _ONE),
    "--max-num-queued-reqs": Refusal("rejecting requests at the door is not simulated", _OFF),
    "--max-num-queued-tokens": Refusal("rejecting requests at the door is not simulated", _OFF),
    "--enable-lora": Refusal("LoRA adapters (in block hashes and in admission) are not simulated", _OFF),
    "--lora-modules": Refusal("LoRA adapters (in block hashes and in admission) are not simulated", _OFF),
    "--default-mm-loras": Refusal("LoRA adapters (in block hashes and in admission) are not simulated", _OFF),
    "--kv-cache-dtype-skip-layers": Refusal("layers with a KV cache of another type are not covered", _OFF),
    "--use-replayssm": Refusal("replayed recurrent states are not covered", _OFF),
    "--enable-mamba-shared-prefix-checkpoint": Refusal(
        "checkpoints of states at shared prefixes are not simulated", _OFF
    ),
    "--disable-sliding-window": Refusal(
        "layers without their window are not covered", _OFF, "give --max-model-len at most the window instead"
    ),
    "--runner": Refusal("only generation is simulated", ("auto", "generate")),
    "--convert": Refusal("only generation is simulated", ("auto", "none")),
    "--pooler-config": Refusal("only generation is simulated", _OFF),
    "--mm-encoder-only": Refusal("an encoder without a language model has no KV cache", _OFF),
    "--hf-overrides": Refusal(
        "changes to the model's config are not read",
        _OFF,
        "write them into a config.json and name it as the model",
    ),
    "--model-class-overrides": Refusal("another model class may have other layers", _OFF),
    "--engram-config": Refusal("engram memory is not covered", _OFF),
}

_ESTIMATE = "changes what is left of the GPU's memory for the pool, and that is only estimated"
MEMORY: dict[str, Refusal] = {
    name: Refusal(_ESTIMATE, _OFF, "also give --kv-cache-memory-bytes, as vLLM's log prints it")
    for name in (
        "--cpu-offload-gb",
        "--offload-group-size",
        "--offload-params",
        "--cpu-offload-params",
        "--mm-ipc-gpu-memory-gb",
        "--quantization-config",
    )
}

_IGNORED: dict[str, str] = {
    "the API server and its clients": (
        "--api-server-count --grpc --grpc-port --chat-template --chat-template-content-format"
        " --trust-request-chat-template --trust-request-mm-kwargs --default-chat-template-kwargs"
        " --response-role"
        " --return-tokens-as-token-ids --enable-auto-tool-choice --exclude-tools-when-tool-choice-none"
        " --tool-call-parser --tool-parser-plugin --tool-strict-level --tool-server --max-log-len"
        " --enable-prompt-tokens-details --enable-per-request-metrics --enable-server-load-tracking"
        " --enable-force-include-usage --sse-keep-alive-interval --enable-tokenizer-info-endpoint"
        " --cohere-is-reasoning-model --cohere-format --anthropic-disabled-thinking-effort --tokens-only"
        " --enable-scale-out --fingerprint-mode --fingerprint-value --host --port"
        " --data-parallel-supervisor-port"
        " --dp-supervisor-probe-interval-s --dp-supervisor-probe-timeout-s"
        " --dp-supervisor-probe-failure-threshold"
        " --uds --uvicorn-log-level --disable-uvicorn-access-log --disable-access-log-for-endpoints"
        " --allow-credentials --allowed-origins --allowed-methods --allowed-headers --api-key --ssl-keyfile"
        " --ssl-certfile --ssl-ca-certs --enable-ssl-refresh --ssl-cert-reqs --ssl-ciphers --root-path"
        " --middleware"
        " --enable-request-id-headers --disable-fastapi-docs --h11-max-incomplete-event-size"
        " --h11-max-header-count"
        " --shutdown-timeout --served-model-name --enable-offline-docs --stream-interval"
        " --enable-flash-late-interaction"
    ),
    "logs, metrics and profiles": (
        "--disable-log-stats --aggregate-engine-logging --enable-log-requests --enable-log-outputs"
        " --enable-log-deltas --log-error-stack --logging-config --log-level --log-config-file"
        " --show-hidden-metrics-for-version --otlp-traces-endpoint --collect-detailed-traces"
        " --per-request-spec-decode-metrics --kv-cache-metrics --kv-cache-metrics-sample"
        " --custom-histogram-buckets"
        " --cudagraph-metrics --enable-layerwise-nvtx-tracing --enable-mfu-metrics"
        " --enable-logging-iteration-details --jit-monitor-mode --jit-monitor-verbose --profiler-config"
        " --kv-events-config --ray-workers-use-nsight --fail-on-environ-validation --enable-trace-replay"
    ),
    "texts, sampling and what is returned": (
        "--tokenizer --tokenizer-mode --tokenizer-revision --skip-tokenizer-init --seed --max-logprobs"
        " --logprobs-mode --use-fp64-gumbel --enable-return-routed-experts --return-sampling-mask"
        " --generation-config"
        " --override-generation-config --logits-processors --io-processor-plugin --renderer-num-workers"
        " --enable-prompt-embeds --reasoning-parser --reasoning-parser-plugin --structured-outputs-config"
        " --reasoning-config --watermark-config --aux-output-config --enable-batch-sharded-sampling"
    ),
    "where the model and its code come from": (
        "--trust-remote-code --revision --code-revision --hf-token --config-format --allowed-local-media-path"
        " --allowed-media-domains --model-impl --load-format --download-dir --safetensors-load-strategy"
        " --safetensors-prefetch-num-threads --safetensors-prefetch-block-size --model-loader-extra-config"
        " --ignore-patterns --use-tqdm-on-load --pt-load-map-location --max-parallel-loading-workers"
        " --allow-deprecated-quantization --weight-transfer-config"
        " --sleep-preserve-parameter-names"
    ),
    "kernels, graphs and compilation: step times only": (
        "--gdn-prefill-backend --kda-prefill-backend --kda-decode-backend --mamba-backend"
        " --mamba-ssu-algorithm --enable-mamba-cache-stochastic-rounding --mamba-cache-philox-rounds"
        " --disable-cascade-attn --cudagraph-capture-sizes --max-cudagraph-capture-size --ir-op-priority"
        " --enable-flashinfer-autotune --moe-backend --linear-backend --sparse-indexer-topk-backend"
        " --compilation-config --kernel-config --optimization-level --enable-dbo"
        " --ubatch-size"
        " --dbo-decode-token-threshold --dbo-prefill-token-threshold --disable-custom-all-reduce"
        " --kv-sharing-fast-prefill"
    ),
    "processes and machines": (
        "--distributed-executor-backend --master-addr --master-port --nnodes --node-rank"
        " --distributed-timeout-seconds --cpu-distributed-timeout-seconds --numa-bind --numa-bind-nodes"
        " --numa-bind-cpus --device-ids --dcp-comm-backend --dcp-q-replicate --dcp-kv-cache-interleave-size"
        " --cp-kv-cache-interleave-size --data-parallel-rank --data-parallel-start-rank"
        " --data-parallel-size-local"
        " --data-parallel-address --data-parallel-rpc-port --data-parallel-backend --data-parallel-hybrid-lb"
        " --data-parallel-external-lb --data-parallel-multi-port-external-lb --enable-hc-sp"
        " --enable-expert-parallel"
        " --enable-ep-weight-filter --all2all-backend --enable-shm-tensor-arena --elastic-ep-max-dp-size"
        " --dp-sync-interval --disable-nccl-for-dp-synchronization --enable-eplb --eplb-config"
        " --expert-placement-strategy --worker-cls --worker-extension-cls --enable-fault-tolerance"
        " --fault-tolerance-config --enable-sleep-mode --sleep-mode-offload-cudagraph"
        " --enable-cumem-allocator"
        " --enable-nccl-comm-suspend --additional-config"
    ),
    "images, sound and video": (
        "--language-model-only --limit-mm-per-prompt --enable-mm-embeds --media-io-kwargs"
        " --mm-processor-kwargs"
        " --mm-processor-cache-gb --mm-processor-cache-type --mm-hasher-algorithm"
        " --mm-shm-cache-max-object-size-mb"
        " --mm-encoder-tp-mode --mm-encoder-attn-backend --mm-encoder-attn-dtype --mm-encoder-fp8-scale-path"
        " --mm-encoder-fp8-scale-save-path --mm-encoder-fp8-scale-save-margin --interleave-mm-strings"
        " --skip-mm-profiling --video-pruning-rate --video-pruning-method --mm-tensor-ipc"
        " --mm-processor-device"
        " --mm-device-do-normalize --disable-chunked-mm-input --ec-manager-config"
    ),
    "details of a feature whose own option is refused, or that no covered model has": (
        "--max-loras --max-lora-rank --lora-dtype --enable-tower-connector-lora --max-cpu-loras"
        " --fully-sharded-loras --lora-target-modules --specialize-active-lora --enable-mixed-moe-lora-format"
        " --enable-moe-shared-loras --max-lora-cls-labels --kv-offloading-backend --offload-backend"
        " --offload-num-in-group --offload-prefetch-step --replayssm-buffer-len --swa-bounded-replay"
    ),
    "hash values, which the pool only compares": "--prefix-caching-hash-algo",
}
#: Why it changes nothing here -> options.
IGNORED = {why: tuple(names.split()) for why, names in _IGNORED.items()}


@cache
def options() -> dict[str, dict[str, Any]]:
    """All options by name: {"takes": ..., "aliases": [...]}; see validation/serve_options.py."""
    found: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))["options"]
    return found


@cache
def spellings() -> dict[str, str]:
    """Every way to write an option's name (without --no-) -> the name."""
    found = {name: name for name in options()}
    found |= {alias: name for name, entry in options().items() for alias in entry.get("aliases", ())}
    # With `vllm serve` the model is the first argument; the older --model is still taken.
    return found | {"--model": "--model"}


@cache
def ignored() -> dict[str, str]:
    """Ignored option -> why."""
    return {name: why for why, names in IGNORED.items() for name in names}


def unclassified() -> list[str]:
    """Options that are in no class or in several, and names in a class that are no options."""
    names = [*ENGINE, *SPECULATIVE, *REFUSED, *MEMORY, *(n for group in IGNORED.values() for n in group)]
    known = set(options()) | {"--model"}
    return sorted({n for n in known | set(names) if names.count(n) != 1 or n not in known})


@cache
def flags() -> dict[str, str]:
    """Key of `engine:` -> the option that sets it: the table read backwards."""
    return {
        key: name for name, (key, how) in ENGINE.items() if key and how not in ("config_path", "config_file")
    }


def serve_option(key: str, value: bool | float | str) -> list[str]:
    """A key of `engine:` with its value as arguments of `vllm serve`.

    Raises:
        KeyError: vLLM has no option for this key.
    """
    name = flags()[key]
    if isinstance(value, bool):
        return [name if value else "--no-" + name.removeprefix("--")]
    return [name, f"{value:g}" if isinstance(value, float) else str(value)]
