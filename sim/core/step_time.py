"""How long the execution of one batch takes, in integer nanoseconds."""

from __future__ import annotations

import numpy as np

from sim.core.jit import inner, leaf
from sim.core.state import StepTime

KIND_CONSTANT = 0
KIND_AFFINE = 1
KIND_ROOFLINE = 2
KIND_TABLE = 3


@leaf
def _locate(axis: np.ndarray, x: float) -> tuple[int, float]:
    """Cell of x on a rising axis and its fraction in it, clamped to the ends."""
    n = axis.size
    if n == 1 or x <= axis[0]:
        return 0, 0.0
    if x >= axis[n - 1]:
        return n - 2, 1.0
    lo = 0
    hi = n - 1
    while hi - lo > 1:
        mid = (lo + hi) >> 1
        if axis[mid] <= x:
            lo = mid
        else:
            hi = mid
    return lo, (x - axis[lo]) / (axis[hi] - axis[lo])


@inner
def _interpolate(
    axis_tokens: np.ndarray, axis_context: np.ndarray, table: np.ndarray, tokens: float, context: float
) -> float:
    i, u = _locate(axis_tokens, tokens)
    j, v = _locate(axis_context, context)
    nb = axis_context.size
    i1 = min(i + 1, axis_tokens.size - 1)
    j1 = min(j + 1, nb - 1)
    low = table[i * nb + j] * (1.0 - v) + table[i * nb + j1] * v
    high = table[i1 * nb + j] * (1.0 - v) + table[i1 * nb + j1] * v
    return low * (1.0 - u) + high * u


@inner
def step_duration_ns(
    model: StepTime,
    tokens: int,
    prefill_tokens: int,
    decode_seqs: int,
    decode_context: int,
    prefill_pairs: int,
    prefill_context: int,
    sampled: int,
    encoder_tokens: int = 0,
    encoder_pairs: int = 0,
    encoder_context: int = 0,
    cross_pairs: int = 0,
) -> int:
    """Duration of a batch in ns, rounded half to even, at least 1 (0 for an empty batch).

    ``decode_context``: computed tokens that the decodes read; ``prefill_pairs``: query-key pairs of the
    prefills; ``prefill_context``: tokens that the prefills read; ``sampled``: sequences that produce a token.
    Of models with cross attention: ``encoder_tokens``: tokens that go through the encoder, with
    ``encoder_pairs`` query-key pairs there; ``encoder_context``: encoder tokens that the decoder reads, in
    ``cross_pairs`` query-key pairs.
    """
    if tokens == 0:
        return 0
    k = model.coef
    if model.kind == KIND_CONSTANT:
        ns = k[0]
    elif model.kind == KIND_AFFINE:
        ns = k[0] + k[1] * prefill_tokens + k[2] * decode_seqs + k[3] * decode_context
        ns += k[4] * encoder_tokens
    elif model.kind == KIND_ROOFLINE:
        compute = k[1] * tokens + k[2] * (prefill_pairs + decode_context) + k[3] * sampled
        memory = k[4] + k[5] * (decode_context + prefill_context) + k[6] * tokens
        compute += k[8] * cross_pairs
        memory += k[9] * encoder_context
        ns = max(compute, memory) + k[0]
        if encoder_tokens > 0:
            # the encoder's forward pass comes before the decoder's
            ns += max(k[10] * encoder_tokens + k[11] * encoder_pairs, k[7])
    else:
        ns = _interpolate(
            model.axis_tokens,
            model.axis_context,
            model.table,
            float(tokens),
            float(decode_context + prefill_context),
        )
    return max(np.int64(np.rint(ns)), 1)
