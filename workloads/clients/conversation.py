"""A conversation: every prompt is the shared prefix and all that was said so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from workloads.clients.base import Emitter, Session, nominal_service_ns


def converse(
    emitter: Emitter,
    prefix: tuple[int, int],
    turns: Iterable[tuple[int, int]],
    pauses: Iterator[int],
    max_context: int | None,
    parent: int,
    think_ns: int,
) -> Session:
    """The process of one session.

    Args:
        prefix: segment and length (tokens, 0: none) of what the session shares with others.
        turns: tokens that are new in a turn's prompt, and tokens of its answer; drawn one by one.
        pauses: ns between an answer and the next turn.
        max_context: a turn that would not fit into so many tokens ends the session; None: no limit.
        parent: request that the first turn follows, -1: it begins when the process does.
        think_ns: ns after the parent's end.

    Returns:
        The last request of the session, -1 when there is none.
    """
    number = emitter.session()
    segment, context = prefix
    seg_ids, seg_lens = ([segment], [context]) if context else ([], [])
    last, pause = parent, think_ns
    sent = -1
    for turn, (input_len, output_len) in enumerate(turns):
        context += input_len
        if max_context is not None and context + output_len > max_context:
            break
        if turn:
            pause = next(pauses)
            yield emitter.env.timeout(pause)
        seg_ids.append(emitter.segment())
        seg_lens.append(input_len)
        answer = emitter.segment()
        sent = last = emitter.emit(
            seg_ids, seg_lens, output_len, out_seg=answer, parent=last, think_ns=pause, session=number
        )
        seg_ids.append(answer)
        seg_lens.append(output_len)
        context += output_len
        yield emitter.env.timeout(nominal_service_ns(output_len))
    return sent
