"""What else lies in a GPU's memory: the share that vLLM asks for, weights, activations, graphs.

    requested  = ceil(total memory * gpu_memory_utilization)              vLLM's own formula
    available  = requested - weights - activations - other - CUDA graphs

vLLM measures everything between the two by loading and running the model, so it can only be estimated here:

    weights      parameters on this GPU by their bytes; fp8 and mxfp4 checkpoints as their config says. The
                 number of parameters is that of the tensors that vLLM's model classes make; what a kernel
                 keeps beside them (MLA's absorbed projections are counted) is not known.
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

from sim.gpus import GIB, Gpu
from sim.models import ModelShape
from sim.models.quantization import FP8
from sim.models.shape import padded

OTHER_BYTES = GIB // 2
OTHER_BYTES_TP = 3 * GIB // 2
CUDA_GRAPH_BYTES = 6 * GIB // 10


def requested_bytes(gpu: Gpu, utilization: float) -> int:
    """What vLLM lets itself use of a GPU (worker/utils.py, request_memory)."""
    return math.ceil(gpu.memory_bytes * utilization)


def weight_bytes(model: ModelShape, tensor_parallel: int, quantization: str | None) -> int:
    """Bytes of the weights on one GPU.

    Args:
        model: its checkpoint's quantization counts unless `quantization` says another.
        tensor_parallel: GPUs over which layers are split.
        quantization: "fp8": linear layers and experts take one byte each; embeddings and output stay.
    """
    p, tp, full = model.params, tensor_parallel, model.dtype_bytes
    method = FP8 if quantization else model.quantization
    padded_experts = p.experts_padded if method is not None and method.padded_experts else 0
    experts = (padded_experts or p.experts) * (method.experts if method else full)
    layers = full if method is None or method.linear is None else method.linear
    repeat = max(1, -(-tp // model.kv_heads)) if model.kv_heads else 1
    linear = p.linear * layers + p.kv_linear * repeat * layers
    h = model.hidden
    tables = sum(padded(count // h) * h for count in (p.embedding, 0 if p.tied else p.head))
    split = linear + experts + (p.tower + p.absorbed) * full
    whole = p.whole * full
    if model.is_encoder_decoder:
        # Whisper's embedding is whole on every GPU.
        whole += tables * full
    else:
        split += tables * full
    return int(split / tp + whole)


def activation_bytes(model: ModelShape, tensor_parallel: int, tokens: int, seqs: int) -> int:
    """Estimated peak of activations on one GPU; the formula stands in the module's text."""
    width = 6 * model.hidden + 4 * model.intermediate // tensor_parallel
    layer = tokens * width * model.dtype_bytes
    logits = min(seqs, tokens) * (model.vocab // tensor_parallel) * (model.dtype_bytes + 12)
    return max(layer, logits)


def estimated_parts(
    model: ModelShape,
    gpu: Gpu,
    *,
    tensor_parallel: int,
    utilization: float,
    quantization: str | None,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    cuda_graphs: bool = True,
    drafter: ModelShape | None = None,
) -> dict[str, int]:
    """The terms of the budget in bytes: "requested" is exact for the GPU's `memory_bytes`, the others are
    estimates.
    """
    # Layers of the model itself are quantized with it, another drafter is as its own checkpoint says.
    method = quantization if drafter is model.mtp else None
    drafts = weight_bytes(drafter, tensor_parallel, method) if drafter else 0
    return {
        "requested": requested_bytes(gpu, utilization),
        "weights": weight_bytes(model, tensor_parallel, quantization),
        "drafter": drafts,
        "activations": activation_bytes(model, tensor_parallel, max_num_batched_tokens, max_num_seqs),
        "other": OTHER_BYTES if tensor_parallel == 1 else OTHER_BYTES_TP,
        "cuda_graphs": CUDA_GRAPH_BYTES if cuda_graphs else 0,
    }


def left_over(parts: dict[str, int]) -> int:
    """Memory for the pool: what was requested less everything else; may be negative."""
    return parts["requested"] - sum(v for k, v in parts.items() if k != "requested")
