"""Multi-turn chat: the prompt of every turn is the system prompt and the whole conversation so far."""

from __future__ import annotations

from workloads.clients.base import Emitter, Session, run_sessions
from workloads.clients.conversation import converse
from workloads.spec.clients import Chat
from workloads.streams import geometric_counts, zipf_ranks


def start(emitter: Emitter, spec: Chat) -> None:
    """Start the chat's sessions in the emitter's environment."""
    system_lens = emitter.lengths(spec.system_len, "system_len")
    systems = [(emitter.segment(), next(system_lens)) for _ in range(spec.personas)]
    personas = zipf_ranks(emitter.rng("persona"), spec.personas, spec.persona_zipf)
    turns = geometric_counts(emitter.rng("turns"), spec.turns, 1, spec.max_turns)
    user_lens = emitter.lengths(spec.user_len, "user_len")
    output_lens = emitter.lengths(spec.output_len, "output_len")
    thinks = emitter.times(spec.think_time, "think_time")

    def session(parent: int, think_ns: int) -> Session:
        said = ((next(user_lens), emitter.capped(next(output_lens))) for _ in range(next(turns)))
        system = systems[next(personas)]
        return converse(emitter, system, said, thinks, spec.max_context, parent, think_ns)

    run_sessions(emitter, spec, session)
