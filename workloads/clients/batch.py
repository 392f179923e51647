"""Offline batch: all requests at once, or in waves, behind few-shot prefixes that they share."""

from __future__ import annotations

from workloads.arrivals import Process
from workloads.clients.base import Emitter, drop_empty
from workloads.spec.clients import Batch


def start(emitter: Emitter, spec: Batch) -> None:
    """Start the waves in the emitter's environment."""
    few_shot_lens = emitter.lengths(spec.few_shot_len, "few_shot_len")
    prefixes = [(emitter.segment(), next(few_shot_lens)) for _ in range(spec.few_shot_variants)]
    prompt_lens = emitter.lengths(spec.prompt_len, "prompt_len")
    output_lens = emitter.lengths(spec.output_len, "output_len")

    def waves() -> Process:
        if emitter.start_ns:
            yield emitter.env.timeout(emitter.start_ns)
        wave = 0
        for k in range(spec.num_requests):
            if k * spec.waves // spec.num_requests > wave:
                wave = k * spec.waves // spec.num_requests
                yield emitter.env.timeout(emitter.start_ns + wave * spec.wave_interval - int(emitter.env.now))
            prefix, prefix_len = prefixes[k % spec.few_shot_variants]
            seg_ids, seg_lens = drop_empty([prefix, emitter.segment()], [prefix_len, next(prompt_lens)])
            emitter.emit(seg_ids, seg_lens, emitter.capped(next(output_lens)), out_seg=emitter.segment())

    emitter.env.process(waves())
