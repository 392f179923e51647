"""How long one engine step takes: the latency models and their builders.

A model is a `StepTime`: a kind and a few numbers, evaluated by the jitted core for each batch. All
coefficients are in nanoseconds. The features of one batch are

    T  scheduled tokens
    P  prefill tokens: tokens of requests that compute more than one token of their known text
    D  decode sequences: requests that compute exactly one token
    C  context tokens read by the decodes (sum of tokens computed before the step)
    A  attention pairs of the prefills: sum over them of n*computed + n*(n+1)/2
    K  context tokens read by the prefills: sum over them of computed + n
    Q  sequences that sample a token

of models with cross attention also

    E  tokens that go through the encoder, and F query-key pairs there
    X  encoder tokens that the decoder's sequences read, and Y query-key pairs of that

and the kinds are

    constant  c0
    affine    c0 + c1*P + c2*D + c3*C + c4*E
    roofline  max(c1*T + c2*(A+C) + c3*Q + c8*Y,  c4 + c5*(C+K) + c6*T + c9*X) + c0
              + max(c10*E + c11*F,  c7), if E > 0
    table     bilinear interpolation over (T, C+K), clamped at the edges

An empty batch takes 0 ns; anything else is rounded to whole nanoseconds (half to even), at least 1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sim.gpus import Gpu
    from sim.models import ModelShape
    from sim.models.quantization import Quantization

CONSTANT, AFFINE, ROOFLINE, TABLE = 0, 1, 2, 3
NUM_COEF = 12


class StepTime(NamedTuple):
    """A step-time model, ready for the core.

    Attributes:
        kind: 0 constant, 1 affine, 2 roofline, 3 table.
        coef: float64[12], nanoseconds per unit of the feature it multiplies; unused ones are 0.
        axis_tokens: float64[a], ascending scheduled tokens of the table's rows.
        axis_context: float64[b], ascending context tokens (C + K) of the table's columns.
        table: float64[a*b], row-major nanoseconds: `table[i*b + j]`. Length-1 arrays if kind is not 3.
    """

    kind: int
    coef: NDArray[np.float64]
    axis_tokens: NDArray[np.float64]
    axis_context: NDArray[np.float64]
    table: NDArray[np.float64]


class BatchFeatures(NamedTuple):
    """What a step-time model may depend on; see the module's text."""

    tokens: int
    prefill_tokens: int = 0
    decode_seqs: int = 0
    decode_context: int = 0
    prefill_pairs: int = 0
    prefill_context: int = 0
    sampled: int = 0
    encoder_tokens: int = 0
    encoder_pairs: int = 0
    encoder_context: int = 0
    cross_pairs: int = 0


def _with_coef(kind: int, values: Sequence[float]) -> StepTime:
    coef = np.zeros(NUM_COEF, np.float64)
    coef[: len(values)] = values
    if not np.all(np.isfinite(coef)) or np.any(coef < 0):
        raise ValueError(f"step-time coefficients must be finite and not negative, got {list(values)}")
    one = np.zeros(1, np.float64)
    return StepTime(kind, coef, one, one.copy(), one.copy())


def constant(step_ns: float) -> StepTime:
    """Each step takes `step_ns` nanoseconds, whatever is in it."""
    return _with_coef(CONSTANT, [step_ns])


def affine(
    overhead_ns: float,
    prefill_token_ns: float = 0.0,
    decode_seq_ns: float = 0.0,
    context_token_ns: float = 0.0,
    encoder_token_ns: float = 0.0,
) -> StepTime:
    """`overhead + prefill_token*P + decode_seq*D + context_token*C + encoder_token*E`, in nanoseconds."""
    return _with_coef(
        AFFINE, [overhead_ns, prefill_token_ns, decode_seq_ns, context_token_ns, encoder_token_ns]
    )


def roofline(
    model: ModelShape,
    gpu: Gpu,
    *,
    tensor_parallel: int = 1,
    kv_dtype_bytes: int = 2,
    quantization: Quantization | None = None,
    mfu: float = 0.5,
    mbu: float = 0.75,
    overhead_ns: float = 5e5,
    allreduce_latency_ns: float = 1e4,
    link_utilization: float = 0.7,
    typical_context: int = 4096,
) -> StepTime:
    """The slower of compute and memory traffic on one of `tensor_parallel` equal GPUs, and an overhead.

    With F the data sheet's FLOP/s times `mfu`, W its bytes/s times `mbu`, and all sizes per GPU:

        c1  2 * layer parameters / F: matrix products of one token (FP8 rate if quantized); of experts only
            those that a token goes to
        c2  4 * heads * head_dim * layers / F: one query-key pair (scores and their product with V)
        c3  2 * hidden * vocab / F: logits of one sampled sequence
        c4  (layer weights + output projection) / W: read once a step, all experts of them
        c5  bytes of K and V of one token in all layers / W: reading one token of context
        c6  (K and V of one token + layers * (8*hidden + 4*intermediate) activations) / W: one computed token
        c0  overhead

    Layers with a window or chunk count in c2 and c5 by min(1, window / typical_context). Recurrent states
    are left out: they are small beside the weights.

    Of models with cross attention (0 for others):

        c7  encoder weights / W, with the decoder's projections of its output: read by a step that runs it
        c8  as c2, of the layers with cross attention, whose pairs are left out there
        c9  as c5, of these layers: reading one encoder token
        c10 2 * encoder parameters (and those projections) / F: one encoder token
        c11 FLOPs of one query-key pair in all encoder layers / F

    Tensor parallelism adds two all-reduces a layer: their latency to c0, and the ring's traffic of one token,
    2*(TP-1)/TP * hidden * dtype bytes / (link bandwidth * link_utilization), to c1 and c6 alike.

    The default efficiencies are typical of bf16 kernels on large batches, not a calibration: a table fitted
    from recorded steps (`kind: table`) is the way to a model of one's own machine.
    """
    from sim.models.shape import read_share

    tp, p = tensor_parallel, model.params
    fp8 = quantization is not None and quantization.fp8_math
    flops = gpu.bf16_flops * mfu
    linear_flops = (gpu.fp8_flops if fp8 and gpu.fp8_flops else gpu.bf16_flops) * mfu
    bandwidth = gpu.memory_bandwidth * mbu
    kv_token = model.kv_bytes_per_token(tp, kv_dtype_bytes, typical_context)
    crossing = [c for c in model.cache_layers if c.kind == "cross_attention"]
    cross_pairs = sum(c.pair_flops for c in crossing)
    cross_token = sum(c.heads_on_gpu(tp) * (c.head_size + c.head_size_v) * kv_dtype_bytes for c in crossing)
    kv_token -= cross_token
    pairs = sum(c.pair_flops * read_share(c, typical_context) for c in model.cache_layers) - cross_pairs
    # keys and values of the encoder's output are made once for each encoder token, not for the decoder's
    projections = sum(c.heads * (c.head_size + c.head_size_v) for c in crossing) * model.hidden
    encoder = p.tower + projections if crossing else 0
    activations = model.layers * (8 * model.hidden + 4 * model.intermediate / tp) * model.dtype_bytes
    stored = (quantization.experts, quantization.linear) if quantization else (None, None)
    expert_bytes, layer_bytes = (model.dtype_bytes if size is None else size for size in stored)
    weights: float = (p.linear + p.kv_linear - projections) * layer_bytes
    weights += p.experts * expert_bytes + p.head * model.dtype_bytes
    allreduce, latency = 0.0, 0.0
    if tp > 1:
        ring = 2 * (tp - 1) / tp * model.hidden * model.dtype_bytes
        allreduce = 2 * model.layers * ring / (gpu.link_bandwidth * link_utilization)
        latency = 2 * model.layers * allreduce_latency_ns
    ns = 1e9
    return _with_coef(
        ROOFLINE,
        [
            overhead_ns + latency,
            ns * (2 * (p.active - projections) / tp / linear_flops + allreduce),
            ns * pairs / tp / flops,
            ns * 2 * p.head / tp / flops,
            ns * weights / tp / bandwidth,
            ns * kv_token / bandwidth,
            ns * ((kv_token + activations) / bandwidth + allreduce),
            ns * encoder * layer_bytes / tp / bandwidth,
            ns * cross_pairs / tp / flops,
            ns * cross_token / bandwidth,
            ns * 2 * encoder / tp / linear_flops,
            ns * model.encoder_pair_flops / tp / flops,
        ],
    )


def table(
    axis_tokens: Sequence[float], axis_context: Sequence[float], values: NDArray[np.float64]
) -> StepTime:
    """A table of nanoseconds over ascending scheduled tokens (rows) and context tokens (columns)."""
    rows = np.ascontiguousarray(axis_tokens, np.float64)
    columns = np.ascontiguousarray(axis_context, np.float64)
    cells = np.ascontiguousarray(values, np.float64).reshape(-1)
    if cells.size != rows.size * columns.size or rows.size == 0 or columns.size == 0:
        raise ValueError(
            f"a table of {rows.size} x {columns.size} cells needs as many values, got {cells.size}"
        )
    if np.any(np.diff(rows) <= 0) or np.any(np.diff(columns) <= 0):
        raise ValueError("the axes of a step-time table must ascend")
    if not np.all(np.isfinite(cells)) or np.any(cells < 0):
        raise ValueError("step times must be finite and not negative")
    return StepTime(TABLE, np.zeros(NUM_COEF, np.float64), rows, columns, cells)


def duration_ns(st: StepTime, features: BatchFeatures | Sequence[int]) -> int:
    """Nanoseconds of one step: the plain-Python twin of the core's jitted `step_duration_ns`.

    Args:
        st: the model.
        features: (T, P, D, C, A, K, Q, E, F, X, Y) in this order; the last four may be left out.
    """
    T, P, D, C, A, K, Q, E, F, X, Y = (float(x) for x in BatchFeatures(*features))
    if T <= 0.0:
        return 0
    c = st.coef
    if st.kind == CONSTANT:
        ns = float(c[0])
    elif st.kind == AFFINE:
        ns = float(c[0] + c[1] * P + c[2] * D + c[3] * C + c[4] * E)
    elif st.kind == ROOFLINE:
        compute = float(c[1] * T + c[2] * (A + C) + c[3] * Q + c[8] * Y)
        memory = float(c[4] + c[5] * (C + K) + c[6] * T + c[9] * X)
        ns = max(compute, memory) + float(c[0])
        if E > 0:
            ns += max(float(c[10] * E + c[11] * F), float(c[7]))
    elif st.kind == TABLE:
        ns = _interpolate(st, T, C + K)
    else:
        raise ValueError(f"unknown step-time kind {st.kind}")
    return max(1, round(ns))


def _interpolate(st: StepTime, tokens: float, context: float) -> float:
    i, fi = _locate(st.axis_tokens, tokens)
    j, fj = _locate(st.axis_context, context)
    b = len(st.axis_context)
    i1, j1 = min(i + 1, len(st.axis_tokens) - 1), min(j + 1, b - 1)
    t = st.table
    low = t[i * b + j] * (1.0 - fj) + t[i * b + j1] * fj
    high = t[i1 * b + j] * (1.0 - fj) + t[i1 * b + j1] * fj
    return float(low * (1.0 - fi) + high * fi)


def _locate(axis: NDArray[np.float64], x: float) -> tuple[int, float]:
    """Cell index and fraction within it; outside the axis the edge with fraction 0."""
    n = len(axis)
    if n == 1 or x <= axis[0]:
        return 0, 0.0
    if x >= axis[n - 1]:
        return n - 1, 0.0
    i = bisect_right(axis, x) - 1
    return i, float((x - axis[i]) / (axis[i + 1] - axis[i]))
