"""What `validate` says about a config that would run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.report.units import blocks_text, count, plural, seconds, size

if TYPE_CHECKING:
    from sim.resolve import Resolved
    from workloads.requests import Workload


def describe_run(config: str, resolved: Resolved, workload: Workload) -> str:
    """A few lines: the pool, the batch limits, the workload, the cost of typical steps."""
    from sim.step_time import BatchFeatures, duration_ns

    e = resolved.engine
    pool = blocks_text(e.num_gpu_blocks, e.block_size, not e.has_token_slots)
    if resolved.block_bytes_total is not None:
        pool += f" = {size(resolved.block_bytes_total * e.num_gpu_blocks)}, {resolved.pool.how}"
    n = len(workload)
    prompt, output = int(workload.prompt_len.sum()), int(workload.output_len.sum())
    decode = duration_ns(resolved.step_time, BatchFeatures(1, 0, 1, 1000, 0, 0, 1))
    t = min(e.scheduled_tokens, 2048)
    prefill = duration_ns(resolved.step_time, BatchFeatures(t, t, 0, 0, t * (t + 1) // 2, t, 1))
    spec = resolved.spec.kind
    return "\n".join(
        [
            f"{config}: fine",
            f"  pool      {pool}",
            f"  batch     max_num_seqs {e.max_num_seqs}, max_num_batched_tokens {e.max_num_batched_tokens},"
            f" max_model_len {e.max_model_len}",
            f"  workload  {spec}: {plural(n, 'request')}, mean {count(prompt / max(n, 1))} prompt and"
            f" {count(output / max(n, 1))} output tokens",
            f"  steps     one decode at 1,000 tokens {seconds(decode / 1e9)}, a prefill of {t:,} tokens"
            f" {seconds(prefill / 1e9)}",
        ]
    )
