"""Multi-turn chat: the prompt of every turn is the system prompt and the whole conversation so far."""

from __future__ import annotations

from workloads.clients.base import Emitter, Session, nominal_service_ns, run_sessions
from workloads.spec.clients import Chat
from workloads.streams import geometric_counts, zipf_ranks


def start(emitter: Emitter, spec: Chat) -> None:
    """Start the chat's sessions in the emitter's environment."""
    env = emitter.env
    system_lens = emitter.lengths(spec.system_len, "system_len")
    systems = [(emitter.segment(), next(system_lens)) for _ in range(spec.personas)]
    personas = zipf_ranks(emitter.rng("persona"), spec.personas, spec.persona_zipf)
    turns = geometric_counts(emitter.rng("turns"), spec.turns, 1, spec.max_turns)
    user_lens = emitter.lengths(spec.user_len, "user_len")
    output_lens = emitter.lengths(spec.output_len, "output_len")
    thinks = emitter.times(spec.think_time, "think_time")

    def session(parent: int, think_ns: int) -> Session:
        number = emitter.session()
        system, system_len = systems[next(personas)]
        seg_ids, seg_lens = ([system], [system_len]) if system_len else ([], [])
        context = system_len
        last, pause = parent, think_ns
        sent = -1
        for turn in range(next(turns)):
            user_len, output_len = next(user_lens), emitter.capped(next(output_lens))
            context += user_len
            if spec.max_context is not None and context + output_len > spec.max_context:
                break
            if turn:
                pause = next(thinks)
                yield env.timeout(pause)
            seg_ids.append(emitter.segment())
            seg_lens.append(user_len)
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
