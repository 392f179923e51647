"""Code completion: the repository's context and the file up to a cursor that moves as the user types."""

from __future__ import annotations

from dataclasses import dataclass, field

from workloads.clients.base import Emitter, Session, nominal_service_ns, run_sessions
from workloads.spec.clients import Code
from workloads.streams import geometric_counts, uniforms, zipf_ranks


@dataclass
class Rope:
    """A text as pieces (segment, start, length)."""

    seg_ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    lens: list[int] = field(default_factory=list)
    total: int = 0

    def insert(self, at: int, segment: int, length: int) -> None:
        """Put a segment of `length` >= 1 tokens in front of token `at` (0 <= at <= total)."""
        k = self.split(at)
        self.seg_ids.insert(k, segment)
        self.starts.insert(k, 0)
        self.lens.insert(k, length)
        self.total += length

    def split(self, at: int) -> int:
        """Cut so that a piece begins at token `at`; returns its index (the number of pieces, for the end)."""
        begin = 0
        for k, length in enumerate(self.lens):
            if at == begin:
                return k
            if at < begin + length:
                head = at - begin
                self.lens[k] = head
                self.seg_ids.insert(k + 1, self.seg_ids[k])
                self.starts.insert(k + 1, self.starts[k] + head)
                self.lens.insert(k + 1, length - head)
                return k + 1
            begin += length
        return len(self.lens)

    def slice(self, begin: int, end: int) -> tuple[list[int], list[int], list[int]]:
        """Pieces of the tokens begin:end (begin < end <= total); the rope is cut at both."""
        first = self.split(begin)
        last = self.split(end)
        return self.seg_ids[first:last], self.starts[first:last], self.lens[first:last]


def start(emitter: Emitter, spec: Code) -> None:
    """Start the editing sessions in the emitter's environment."""
    env = emitter.env
    context_lens = emitter.lengths(spec.context_len, "context_len")
    contexts = [(emitter.segment(), next(context_lens)) for _ in range(spec.repositories)]
    chosen = zipf_ranks(emitter.rng("repository"), spec.repositories, spec.repository_zipf)
    completions = geometric_counts(emitter.rng("completions"), spec.completions, 1, spec.max_completions)
    file_lens = emitter.lengths(spec.file_len, "file_len")
    typed_lens = emitter.lengths(spec.typed_len, "typed_len")
    output_lens = emitter.lengths(spec.output_len, "output_len")
    thinks = emitter.times(spec.think_time, "think_time")
    accepts = uniforms(emitter.rng("accept"))
    jumps = uniforms(emitter.rng("jump"))
    places = uniforms(emitter.rng("place"))

    def session(parent: int, think_ns: int) -> Session:
        number = emitter.session()
        context, context_len = contexts[next(chosen)]
        text = Rope()
        file_len = next(file_lens)
        if file_len:
            text.insert(0, emitter.segment(), file_len)
        cursor = int(next(places) * (text.total + 1))
        last, pause = parent, think_ns
        sent = -1
        answer, answer_len = 0, 0
        for k in range(next(completions)):
            if k and next(accepts) < spec.accept:
                text.insert(cursor, answer, answer_len)
                cursor += answer_len
            if k and next(jumps) < spec.jump:
                cursor = int(next(places) * (text.total + 1))
            typed_len = next(typed_lens)
            if typed_len:
                text.insert(cursor, emitter.segment(), typed_len)
                cursor += typed_len
            seg_ids, starts, lens = prompt(context, context_len, text, cursor)
            answer, answer_len = emitter.segment(), emitter.capped(next(output_lens))
            if spec.max_context is not None and sum(lens) + answer_len > spec.max_context:
                break
            if k:
                pause = next(thinks)
                yield env.timeout(pause)
            sent = last = emitter.emit(
                seg_ids,
                lens,
                answer_len,
                out_seg=answer,
                seg_starts=starts,
                parent=last,
                think_ns=pause,
                session=number,
            )
            yield env.timeout(nominal_service_ns(answer_len))
        return sent

    def prompt(
        context: int, context_len: int, text: Rope, cursor: int
    ) -> tuple[list[int], list[int], list[int]]:
        """Context, text before the cursor, and `suffix_len` tokens after it."""
        seg_ids, starts, lens = ([context], [0], [context_len]) if context_len else ([], [], [])
        suffix_end = min(text.total, cursor + spec.suffix_len)
        for begin, end in ((0, cursor), (cursor, suffix_end)):
            if begin < end:
                more = text.slice(begin, end)
                seg_ids += more[0]
                starts += more[1]
                lens += more[2]
        return seg_ids, starts, lens

    run_sessions(emitter, spec, session)
