"""Where a prefill chunk must end for its Mamba state to be cached (vLLM 0.32.0,
``Scheduler._mamba_block_aligned_split``, mode "align").
"""

from __future__ import annotations

from sim.core import codes as c
from sim.core.jit import inner, leaf
from sim.core.state import State
from sim.core.states import exported_checkpoint, is_exported, last_checkpoint, tail_checkpoint


@leaf
def _last_full_block(st: State, r: int) -> int:
    """The end of the last block that the known text fills; of the one before where hits lose a block."""
    size = st.params.block_size
    last = st.requests.num_tokens[r] // size * size
    return max(last - size, 0) if st.params.drops_checkpoint else last


@inner
def _mamba_block_aligned_split(st: State, r: int, start: int, num_new_tokens: int) -> int:
    """Tokens of the chunk that starts at ``start`` and may have ``num_new_tokens``; 0 when none fit.

    A state is written where a chunk ends, so chunks end at block boundaries, at the last boundary that a hit
    on this prompt can use, and where an earlier look-up found the prefix of another request to end. Where the
    kernel exports the state at that boundary on its way, nothing is cut for it.
    """
    rq = st.requests
    size = st.params.block_size
    prefill_end = max(rq.prompt_len[r], rq.num_tokens[r] - 1)
    if start >= prefill_end:
        return num_new_tokens
    end = start + num_new_tokens
    rule = st.params.state_chunks
    position = exported_checkpoint(st.kv, prefill_end)
    exported = end >= prefill_end and is_exported(
        st.kv, start, end, position, st.params.export_alignment, size
    )
    last_state = _last_full_block(st, r)
    if rule == c.CHUNKS_TO_LAST:
        # 0.26: behind the last full block a chunk ends anywhere
        if end < last_state:
            end = end // size * size
    elif end < prefill_end:
        limit = st.params.max_num_scheduled_tokens
        if st.params.long_prefill_token_threshold > 0:
            limit = min(limit, st.params.long_prefill_token_threshold)
        aligned = end // size * size
        # a block that no chunk can fill is approached in parts
        if aligned > start or size <= limit:
            end = aligned
    stop = end
    if not exported:
        next_end = (start // size + 1) * size
        if start % size != 0 and (rule != c.CHUNKS_TO_LAST or next_end <= last_state):
            stop = min(stop, next_end)
        if rule == c.CHUNKS_HITS:
            last_state = last_checkpoint(st.kv, rq.num_tokens[r], size)
        if start < last_state < stop:
            stop = last_state
        if st.params.splits_tails:
            drops = st.params.drops_checkpoint != 0 and st.params.state_tails != c.STATE_TAIL_INSIDE
            tail = tail_checkpoint(st.kv, rq.prompt_len[r], drops)
            if last_state < tail < rq.prompt_len[r] and start < tail < stop:
                stop = tail
    junction = rq.shared_boundary[r]
    if start < junction < end:
        junction = start + (junction - start) // size * size
        if start < junction < stop:
            stop = junction
    return max(stop - start, 0)


@inner
def _split_to_blocks(st: State, r: int, start: int, num_new_tokens: int) -> int:
    """The rule up to 0.25: whole blocks of tokens, wherever the chunk starts. Up to 0.16 nobody was cut after
    the first token.

    A prefix that only some groups have ends the chunk that follows the look-up.
    """
    rq = st.requests
    size = st.params.block_size
    if start >= max(rq.prompt_len[r], rq.num_tokens[r] - 1):
        return num_new_tokens
    if st.params.state_chunks == c.CHUNKS_PROMPTS and rq.num_tokens[r] > rq.prompt_len[r]:
        return num_new_tokens
    last = _last_full_block(st, r)
    n = num_new_tokens
    if start + n < last:
        n = n // size * size
    elif start < last:
        n = min(n, last - start)
    if rq.status[r] != c.S_RUNNING and rq.shared_boundary[r] > 0:
        shared = rq.shared_boundary[r] - start
        if size <= shared < n:
            n = shared // size * size
    return n


@leaf
def fit_chunk(st: State, r: int, start: int, num_new_tokens: int) -> int:
    """Tokens of the chunk that starts at ``start``; 0 when it has to wait for a larger budget."""
    if st.params.mamba_align:
        if st.params.state_chunks <= c.CHUNKS_BLOCKS:
            return _split_to_blocks(st, r, start, num_new_tokens)
        return _mamba_block_aligned_split(st, r, start, num_new_tokens)
    return num_new_tokens
