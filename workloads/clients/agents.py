"""Agents: a long shared prefix, then calls of tools whose results are appended to the conversation."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.clients.base import Emitter, Session, run_sessions
from workloads.clients.conversation import converse
from workloads.spec.clients import Agents
from workloads.streams import geometric_counts, zipf_ranks


def start(emitter: Emitter, spec: Agents) -> None:
    """Start the agents' runs in the emitter's environment."""
    prefix_lens = emitter.lengths(spec.prefix_len, "prefix_len")
    prefixes = [(emitter.segment(), next(prefix_lens)) for _ in range(spec.agents)]
    chosen = zipf_ranks(emitter.rng("agent"), spec.agents, spec.agent_zipf)
    calls = geometric_counts(emitter.rng("tool_calls"), spec.tool_calls, 0, spec.max_tool_calls)
    task_lens = emitter.lengths(spec.task_len, "task_len")
    call_lens = emitter.lengths(spec.call_len, "call_len")
    result_lens = emitter.lengths(spec.result_len, "result_len")
    final_lens = emitter.lengths(spec.final_len, "final_len")
    latencies = emitter.times(spec.tool_latency, "tool_latency")

    def steps(n_calls: int) -> Iterator[tuple[int, int]]:
        for step in range(n_calls + 1):
            input_len = next(result_lens) if step else next(task_lens)
            yield input_len, emitter.capped(next(final_lens) if step == n_calls else next(call_lens))

    def session(parent: int, think_ns: int) -> Session:
        prefix = prefixes[next(chosen)]
        return converse(emitter, prefix, steps(next(calls)), latencies, spec.max_context, parent, think_ns)

    run_sessions(emitter, spec, session)
