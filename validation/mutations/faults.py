"""The faults: a rule of vLLM, where the kernel follows it, and the smallest change that breaks it.

Those of KV-cache groups and drafts are in `group_faults` and `state_faults`. A patch is text: `old` must
stand exactly `times` times in the file, otherwise the check fails and says which fault has to be written
anew. The test of a fault replays a recording of a real vLLM that the fault changes: one that there is
(`Fault.recording`), or one in tests/recorded_vllm/mutations, which `python -m validation.mutations --make`
makes.
"""

from __future__ import annotations

from validation.mutations.fault import Fault
from validation.mutations.group_faults import GROUP_FAULTS
from validation.mutations.release_faults import RELEASE_FAULTS
from validation.mutations.state_faults import STATE_FAULTS

_POOL = "sim/core/block_pool.py"
_MANAGER = "sim/core/kv_cache_manager.py"
_SCHEDULER = "sim/core/scheduler.py"
_QUEUE = "sim/core/request_queue.py"
_MAP = "sim/core/prefix_map.py"
_HASH = "sim/core/block_hash.py"
_ENGINE = "sim/core/engine.py"

_PLAIN = (
    Fault(
        "free_order_unhashed",
        "freed blocks without a hash go to the front of the free queue",
        "all freed blocks go to the tail",
        _POOL,
        "if last or pool.blocks.block_hash[b] != _NO_HASH:",
        "if True:",
    ),
    Fault(
        "free_order_hashed",
        "freed blocks with a hash go to the tail of the free queue",
        "all freed blocks go to the front",
        _POOL,
        "if last or pool.blocks.block_hash[b] != _NO_HASH:",
        "if last:",
    ),
    Fault(
        "tail_first",
        "a request's blocks are freed from the tail of its table",
        "they are freed from the head",
        _POOL,
        "for i in range(end - 1, first - 1, -1):",
        "for i in range(first, end):",
    ),
    Fault(
        "duplicate_choice",
        "of several blocks with one hash a look-up returns the one that was inserted first",
        "it returns the one that was inserted last",
        _MAP,
        "        pool.blocks.dup_prev[first] = block\n",
        "        pool.blocks.dup_prev[first] = block\n        pool.table[i] = _entry(key, block)\n",
    ),
    Fault(
        "hit_cap",
        "hits cover num_tokens - 1 tokens at the most, so that one is left to compute",
        "hits may cover all tokens",
        _MANAGER,
        "cache_hit(kv, r, slot, kv.requests.num_tokens[r] - 1)",
        "cache_hit(kv, r, slot, kv.requests.num_tokens[r])",
    ),
    Fault(
        "watermark_rounding",
        "the watermark is rounded down to whole blocks",
        "it is rounded up",
        "sim/capacity.py",
        '"watermark_blocks": int(e.watermark * e.num_gpu_blocks) if',
        '"watermark_blocks": -int(-e.watermark * e.num_gpu_blocks // 1) if',
    ),
    Fault(
        "watermark_when_idle",
        "the watermark is left free only while some request runs",
        "it is always left free",
        _MANAGER,
        "kv.params.watermark_blocks if has_running else 0",
        "kv.params.watermark_blocks",
    ),
    Fault(
        "reserve_off",
        "a request is admitted only if all its known tokens would fit",
        "it is admitted if this step's tokens fit",
        _MANAGER,
        "if kv.params.reserve_full_isl:\n        need =",
        "if False:\n        need =",
    ),
    Fault(
        "evictable_hits",
        "hit blocks that nobody references count as taken from the free queue",
        "they count as free",
        _MANAGER,
        "    hits = _free_hits(kv, r, slot, hit_tokens)\n",
        "    hits = 0\n",
    ),
    Fault(
        "null_block",
        "the null block is no usable block",
        "admission counts one free block more than there is",
        _MANAGER,
        "free = get_num_free_blocks(kv.pool)\n",
        "free = get_num_free_blocks(kv.pool) + 1\n",
    ),
    Fault(
        "placeholders_cached",
        "tokens that are still placeholders are not cached when they are scheduled",
        "they are",
        _MANAGER,
        "min(num_tokens, kv.requests.num_tokens[r])",
        "num_tokens",
    ),
    Fault(
        "cached_a_step_late",
        "blocks that this step fills are cached when it is scheduled",
        "they are cached with the next step",
        _MANAGER,
        "min(num_tokens, kv.requests.num_tokens[r])",
        "min(kv.requests.num_computed[r], kv.requests.num_tokens[r])",
    ),
    Fault(
        "victim_fcfs",
        "FCFS preempts the request that was admitted last",
        "it preempts the one that was admitted first",
        _SCHEDULER,
        "        return n - 1\n",
        "        return 0\n",
    ),
    Fault(
        "victim_tie",
        "of equal victims by priority the first in running order is preempted",
        "the last one is",
        _SCHEDULER,
        "rq.order_time[a] > rq.order_time[b]",
        "rq.order_time[a] >= rq.order_time[b]",
    ),
    Fault(
        "queue_tie",
        "requests with equal priority and arrival time wait in the order of their ids",
        "in the opposite order",
        _QUEUE,
        "rq.id_rank[a] < rq.id_rank[b]",
        "rq.id_rank[a] > rq.id_rank[b]",
    ),
    Fault(
        "preempted_at_the_end",
        "a preempted request goes to the head of the waiting queue",
        "it goes to the end",
        _SCHEDULER,
        "waiting_push(st, r, True)",
        "waiting_push(st, r, False)",
    ),
    Fault(
        "admission_after_preemption",
        "a step that preempts admits nobody",
        "it admits whoever fits",
        _SCHEDULER,
        "if st.ctl.num_preempted == 0:\n",
        "if st.ctl.num_preempted >= 0:\n",
    ),
    Fault(
        "async_guard",
        "async: a request whose last token is in flight is not scheduled again",
        "it is",
        _SCHEDULER,
        "if ph > 0 and computed + 2 - ph >=",
        "if False and ph > 0 and computed + 2 - ph >=",
    ),
    Fault(
        "stale_output",
        "async: a token that was in flight at a preemption does not count as a placeholder any more",
        "it does",
        _SCHEDULER,
        "            if not stale:\n",
        "            if True:\n",
    ),
    Fault(
        "long_prefill_alone",
        "the long-prefill threshold spares a request that is alone",
        "it does not",
        _SCHEDULER,
        "if st.params.single_request_exempt and eligible <= 1:",
        "if st.params.single_request_exempt and eligible < 1:",
    ),
    Fault(
        "length_limit",
        "a running request computes max_model_len - 1 tokens at the most",
        "it computes max_model_len",
        _SCHEDULER,
        "st.params.max_model_len - computed - 1)",
        "st.params.max_model_len - computed)",
    ),
    Fault(
        "salt",
        "a cache salt keeps prompts apart",
        "it is ignored",
        _HASH,
        "    if salt == 0:\n",
        "    if salt >= 0:\n",
    ),
    Fault(
        "remembered_lookup",
        "a look-up sees what was evicted since the last one (the kernel remembers the last one's hits)",
        "the remembered hits outlive an eviction",
        _POOL,
        "pool.ctl.memo_hits = min(pool.ctl.memo_hits, pool.blocks.mark[b] - 1)",
        "pool.ctl.memo_hits += 0",
    ),
    Fault(
        "last_token_in_flight",
        "a token in flight may be the last one of a request that outgrew the pool",
        "such a request is given up at once",
        _ENGINE,
        "if st.requests.lost[r] >= st.requests.num_tokens[r]:",
        "if st.requests.lost[r] < 0:",
    ),
)

FAULTS = _PLAIN + GROUP_FAULTS + STATE_FAULTS + RELEASE_FAULTS
