"""Agents: a long shared prefix, then calls of tools whose results are appended to the conversation."""

from __future__ import annotations

from workloads.clients.base import Emitter, Session, nominal_service_ns, run_sessions
from workloads.spec.clients import Agents
from workloads.streams import geometric_counts, zipf_ranks


def start(emitter: Emitter, spec: Agents) -> None:
    """Start the agents' runs in the emitter's environment."""
    env = emitter.env
    prefix_lens = emitter.lengths(spec.prefix_len, "prefix_len")
    prefixes = [(emitter.segment(), next(prefix_lens)) for _ in range(spec.agents)]
    chosen = zipf_ranks(emitter.rng("agent"), spec.agents, spec.agent_zipf)
    calls = geometric_counts(emitter.rng("tool_calls"), spec.tool_calls, 0, spec.max_tool_calls)
    task_lens = emitter.lengths(spec.task_len, "task_len")
    call_lens = emitter.lengths(spec.call_len, "call_len")
    result_lens = emitter.lengths(spec.result_len, "result_len")
    final_lens = emitter.lengths(spec.final_len, "final_len")
    latencies = emitter.times(spec.tool_latency, "tool_latency")

    def session(parent: int, think_ns: int) -> Session:
        number = emitter.session()
        prefix, prefix_len = prefixes[next(chosen)]
        seg_ids, seg_lens, context = [prefix], [prefix_len], prefix_len
        last, pause = parent, think_ns
        sent = -1
        n_calls = next(calls)
        for step in range(n_calls + 1):
            input_len = next(result_lens) if step else next(task_lens)
            output_len = emitter.capped(next(final_lens) if step == n_calls else next(call_lens))
            context += input_len
            if spec.max_context is not None and context + output_len > spec.max_context:
                break
            if step:
                pause = next(latencies)
                yield env.timeout(pause)
            seg_ids.append(emitter.segment())
            seg_lens.append(input_len)
            answer = emitter.segment()
            sent = last = emitter.emit(
                seg_ids,
                seg_lens,
                output_len,
                out_seg=answer,
                parent=last,
                think_ns=pause,
                session=number,
            )
            seg_ids.append(answer)
            seg_lens.append(output_len)
            context += output_len
            yield env.timeout(nominal_service_ns(output_len))
        return sent

    run_sessions(emitter, spec, session)
