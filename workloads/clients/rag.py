"""Retrieval-augmented questions: instructions, k chunks of a shared corpus, the question."""

from __future__ import annotations

from workloads.clients.base import Emitter, drop_empty, run_requests
from workloads.lengths import LengthSampler
from workloads.spec.clients import Rag
from workloads.streams import one_by_one, zipf_ranks


def start(emitter: Emitter, spec: Rag) -> None:
    """Start the questions in the emitter's environment."""
    corpus = spec.documents * spec.chunks_per_document
    chunk_lens = LengthSampler(spec.chunk_len, emitter.rng("chunk_len"), emitter.shared.base_dir).draw(corpus)
    lengths = chunk_lens.tolist()
    first_chunk = emitter.segments(corpus)[0]
    system_len = next(emitter.lengths(spec.system_len, "system_len"))
    system = emitter.segment()
    documents = zipf_ranks(emitter.rng("document"), spec.documents, spec.zipf)
    chunk_rng = emitter.rng("chunk")
    places = one_by_one(lambda n: chunk_rng.integers(0, spec.chunks_per_document, n))
    question_lens = emitter.lengths(spec.question_len, "question_len")
    output_lens = emitter.lengths(spec.output_len, "output_len")
    by_document = spec.order == "document"

    def request(parent: int, think_ns: int, pooled: bool) -> tuple[int, int]:
        chunks = retrieve()
        if by_document:
            chunks.sort()
        seg_ids, seg_lens = drop_empty(
            [system, *(first_chunk + chunk for chunk in chunks), emitter.segment()],
            [system_len, *(lengths[chunk] for chunk in chunks), next(question_lens)],
        )
        output_len = emitter.capped(next(output_lens))
        index = emitter.emit(
            seg_ids,
            seg_lens,
            output_len,
            out_seg=emitter.segment(),
            parent=parent,
            think_ns=think_ns,
            pooled=pooled,
        )
        return index, output_len

    def retrieve() -> list[int]:
        """Different chunks in the order drawn; a chunk that is drawn again is drawn once more.

        After many repeats (few documents hold nearly all of the popularity) the next free chunk of the corpus
        is taken, so that this always ends.
        """
        found: dict[int, None] = {}
        patience = 20 * spec.chunks
        while len(found) < spec.chunks:
            chunk = next(documents) * spec.chunks_per_document + next(places)
            if patience == 0:
                while chunk in found:
                    chunk = (chunk + 1) % corpus
            else:
                patience -= 1
            found[chunk] = None
        return list(found)

    run_requests(emitter, spec, request, allow_pool=not emitter.shared.named)
