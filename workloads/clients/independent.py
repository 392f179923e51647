"""Independent requests of random lengths, as `vllm bench serve --dataset-name random` sends them."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.clients.base import Emitter, run_requests
from workloads.lengths import JointSampler
from workloads.spec.clients import Random
from workloads.streams import CHUNK


def start(emitter: Emitter, spec: Random) -> None:
    """Start the requests in the emitter's environment."""
    prefix = emitter.segment()
    pairs = _pairs(emitter, spec)

    def request(parent: int, think_ns: int, pooled: bool) -> tuple[int, int]:
        prompt_len, output_len = next(pairs)
        output_len = emitter.capped(output_len)
        own = emitter.segment()
        index = emitter.emit(
            [prefix, own] if spec.prefix_len else [own],
            [spec.prefix_len, prompt_len] if spec.prefix_len else [prompt_len],
            output_len,
            out_seg=emitter.segment(),
            parent=parent,
            think_ns=think_ns,
            pooled=pooled,
        )
        return index, output_len

    run_requests(emitter, spec, request, allow_pool=not emitter.shared.named)


def _pairs(emitter: Emitter, spec: Random) -> Iterator[tuple[int, int]]:
    """Prompt and output lengths."""
    if spec.lengths is None:
        prompts = emitter.lengths(spec.prompt_len, "prompt_len")
        outputs = emitter.lengths(spec.output_len, "output_len")
        yield from zip(prompts, outputs, strict=False)
        return
    sampler = JointSampler(spec.lengths, emitter.rng("lengths"), emitter.shared.base_dir)
    while True:
        drawn = sampler.draw(CHUNK)
        yield from zip(drawn[0].tolist(), drawn[1].tolist(), strict=True)
