"""Parallel sampling: each prompt arrives as n requests at the same time.

vLLM's V1 engine fans a request with `n` > 1 out into n requests with the same prompt (vLLM 0.32.0,
`ParentRequest`), so the scheduler sees n independent requests and the prefix cache does the sharing.
"""

from __future__ import annotations

from workloads.clients.base import Emitter, drop_empty, run_requests
from workloads.spec.clients import Sampling


def start(emitter: Emitter, spec: Sampling) -> None:
    """Start the prompts in the emitter's environment."""
    system_len = next(emitter.lengths(spec.system_len, "system_len"))
    system = emitter.segment()
    prompt_lens = emitter.lengths(spec.prompt_len, "prompt_len")
    output_lens = emitter.lengths(spec.output_len, "output_len")

    def request(parent: int, think_ns: int, _pooled: bool) -> tuple[int, int]:
        """All n samples; returns the one with the longest output, which a closed loop waits for."""
        seg_ids, seg_lens = drop_empty([system, emitter.segment()], [system_len, next(prompt_lens)])
        longest, longest_len = -1, 0
        encoder_len = emitter.encoder_len()
        for _ in range(spec.n):
            output_len = emitter.capped(next(output_lens))
            index = emitter.emit(
                seg_ids,
                seg_lens,
                output_len,
                out_seg=emitter.segment(),
                parent=parent,
                think_ns=think_ns,
                encoder_len=encoder_len,
            )
            if output_len > longest_len:
                longest, longest_len = index, output_len
        return longest, longest_len

    run_requests(emitter, spec, request, allow_pool=False)
