"""From a model and a GPU to the number of KV blocks, as vLLM 0.32.0 computes it at start-up.

    requested  = ceil(total memory * gpu_memory_utilization)
    available  = requested - weights - activations - other - CUDA graphs
    num_blocks = floor(available / page / layers)
    page       = block_size * 2 * key-value heads per GPU * head_dim * bytes of one element

`requested` and `num_blocks` are vLLM's own formulas (Worker.determine_available_memory, get_num_blocks).
What lies between them vLLM measures by running the model, so it can only be estimated here:

    activations  max(tokens * (6*hidden + 4*intermediate/TP) * dtype bytes,
                     max_num_seqs * vocab/TP * (dtype bytes + 3*4))
                 the widest moment of a layer on a batch of max_num_batched_tokens, or of sampling on float32
                 logits. Llama-3-8B with 8192 tokens: 1.25 GiB, where vLLM's log says 1.26 GiB.
    other        0.5 GiB (CUDA libraries), and 1.5 GiB with tensor parallelism (NCCL buffers)
    CUDA graphs  0.6 GiB

Give `engine.kv_cache_memory_bytes` (vLLM prints it as "Available KV cache memory") or
`engine.num_gpu_blocks` where the exact number matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sim.gpus import GIB, Gpu
from sim.models import ModelShape

OTHER_BYTES = GIB // 2
OTHER_BYTES_TP = 3 * GIB // 2
CUDA_GRAPH_BYTES = 6 * GIB // 10
_KV_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


@dataclass(frozen=True)
class PoolSize:
    """A pool's size and where it comes from.

    Attributes:
        num_gpu_blocks: blocks, the null block included; may be below 1 if the weights don't fit.
        available_bytes: memory for the pool on each GPU; None if unknown.
        page_bytes: bytes of one block in all layers on one GPU.
        how: "given", "kv_cache_memory_bytes" or "estimated".
        parts: the terms of the estimate in bytes.
    """

    num_gpu_blocks: int
    available_bytes: int | None
    page_bytes: int | None
    how: str
    parts: dict[str, int]

    def describe(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "how": self.how,
            "num_gpu_blocks": self.num_gpu_blocks,
            "available_kv_cache_bytes_per_gpu": self.available_bytes,
            "block_bytes_per_gpu": self.page_bytes,
            "estimate_bytes": self.parts,
        }


def kv_dtype_bytes(kv_cache_dtype: str, dtype: str) -> int:
    """Bytes of one cached element; `auto` is the model's dtype."""
    return _KV_BYTES[dtype if kv_cache_dtype == "auto" else kv_cache_dtype]


def weight_bytes(model: ModelShape, tensor_parallel: int, quantization: str | None) -> int:
    """Bytes of the weights on one GPU; fp8 holds for the layers, embeddings and output stay in `dtype`."""
    rest = model.num_params - model.linear_params
    linear = model.linear_params * (1 if quantization == "fp8" else model.dtype_bytes)
    return (linear + rest * model.dtype_bytes) // tensor_parallel


def block_bytes(model: ModelShape, block_size: int, tensor_parallel: int, kv_bytes: int) -> int:
    """Bytes of one block in all layers on one GPU."""
    return block_size * model.kv_bytes_per_token(tensor_parallel, kv_bytes)


def activation_bytes(model: ModelShape, tensor_parallel: int, tokens: int, seqs: int) -> int:
    """Estimated peak of activations on one GPU; the formula stands in the module's text."""
    width = 6 * model.hidden + 4 * model.intermediate // tensor_parallel
    layer = tokens * width * model.dtype_bytes
    logits = min(seqs, tokens) * (model.vocab // tensor_parallel) * (model.dtype_bytes + 12)
    return max(layer, logits)


def blocks_for(
    available: int, model: ModelShape, block_size: int, tensor_parallel: int, kv_bytes: int
) -> int:
    """vLLM's number of blocks (null block included) in `available` bytes of one GPU."""
    page = block_size * model.kv_bytes_per_token_layer(tensor_parallel, kv_bytes)
    return max(0, available) // page // model.layers


def from_memory(
    available: int, model: ModelShape, block_size: int, tensor_parallel: int, kv_bytes: int
) -> PoolSize:
    """The pool in exactly `available` bytes on each GPU."""
    return PoolSize(
        blocks_for(available, model, block_size, tensor_parallel, kv_bytes),
        available,
        block_bytes(model, block_size, tensor_parallel, kv_bytes),
        "kv_cache_memory_bytes",
        {},
    )


def estimate(
    model: ModelShape,
    gpu: Gpu,
    *,
    block_size: int,
    tensor_parallel: int,
    kv_bytes: int,
    utilization: float,
    quantization: str | None,
    max_num_batched_tokens: int,
    max_num_seqs: int,
) -> PoolSize:
    """The pool that vLLM would make on this GPU, estimated; see the module's text."""
    parts = {
        "requested": math.ceil(gpu.memory_bytes * utilization),
        "weights": weight_bytes(model, tensor_parallel, quantization),
        "activations": activation_bytes(model, tensor_parallel, max_num_batched_tokens, max_num_seqs),
        "other": OTHER_BYTES if tensor_parallel == 1 else OTHER_BYTES_TP,
        "cuda_graphs": CUDA_GRAPH_BYTES,
    }
    available = parts["requested"] - sum(v for k, v in parts.items() if k != "requested")
    return PoolSize(
        blocks_for(available, model, block_size, tensor_parallel, kv_bytes),
        available,
        block_bytes(model, block_size, tensor_parallel, kv_bytes),
        "estimated",
        parts,
    )
