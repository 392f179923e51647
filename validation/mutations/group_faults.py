"""Faults in the rules of KV-cache groups and drafts; each is caught by a recording that there is anyway."""

from __future__ import annotations

from validation.mutations.fault import Fault

_GROUPS = "sim/core/kv_groups.py"
_HITS = "sim/core/cache_hit.py"
_COORDINATOR = "sim/core/kv_cache_coordinator.py"
_MANAGER = "sim/core/kv_cache_manager.py"
_RETENTION = "sim/core/retention.py"
_DRAFTS = "sim/core/drafts.py"
_SPLIT = "sim/core/mamba_split.py"
_TAIL = "sim/core/partial_tail.py"
_STATES = "sim/core/states.py"

GROUP_FAULTS = (
    Fault(
        "window_early",
        "blocks that a sliding window has left are freed",
        "they are freed a block early",
        _GROUPS,
        "tokens = num_computed - window + 1\n",
        "tokens = num_computed - window + 1 + kv.groups.block_size[g]\n",
        recording="groups/speculative_50",
    ),
    Fault(
        "window_late",
        "a window of n tokens holds the next token and n - 1 before it",
        "it holds n before it",
        _GROUPS,
        "tokens = num_computed - window + 1\n",
        "tokens = num_computed - window\n",
        recording="groups/speculative_50",
    ),
    Fault(
        "chunk_late",
        "chunked local attention frees a chunk when the next token begins another",
        "a token later",
        _GROUPS,
        "tokens = num_computed // window * window\n",
        "tokens = (num_computed - 1) // window * window\n",
        recording="groups/chunked_local_68",
    ),
    Fault(
        "window_in_flight",
        "async: batches in flight still read the blocks that leave the window with their tokens",
        "they do not count",
        _GROUPS,
        "processed = max(processed - kv.requests.in_flight[r], 0)\n",
        "processed = max(processed, 0)\n",
        recording="groups/chunked_local_68",
    ),
    Fault(
        "nulls_are_places",
        "null blocks are places of a table: no block is allocated for them",
        "an allocation counts blocks for them again",
        _GROUPS,
        "return max(required - kv.tables.length[g, slot], 0)\n",
        "return max(required - kv.tables.length[g, slot], 0) + kv.tables.nulls[g, slot]\n",
        recording="groups/speculative_50",
    ),
    Fault(
        "group_skipped",
        "a hit is one that every group has",
        "the last kind of group is not asked",
        _COORDINATOR,
        "        for s in range(kv.params.num_specs):\n"
        "            if kv.specs.attention[s] == c.GROUP_FULL and kv.specs.hit_tokens",
        "        for s in range(max(kv.params.num_specs - 1, 1)):\n"
        "            if kv.specs.attention[s] == c.GROUP_FULL and kv.specs.hit_tokens",
        recording="groups/chunked_local_68",
    ),
    Fault(
        "asked_once",
        "the groups are asked again until none shortens the hit",
        "each is asked once",
        _COORDINATOR,
        "        if once:\n",
        "        if True:\n",
        recording="groups/chunked_local_68",
    ),
    Fault(
        "cached_unaligned",
        "groups of unequal block size: tokens are cached up to a multiple of all sizes",
        "up to the last full block of each",
        _COORDINATOR,
        "aligned = num_tokens // kv.params.scheduler_block_size * kv.params.scheduler_block_size\n",
        "aligned = num_tokens\n",
        recording="groups/mixed_79",
    ),
    Fault(
        "window_hit_short",
        "a hit in a sliding window needs as many blocks as the window touches",
        "one block less will do",
        _HITS,
        "need = max(kv.specs.tail_blocks[s] + behind, 1)",
        "need = max(kv.specs.tail_blocks[s] + behind - 1, 1)",
        recording="groups/speculative_33",
    ),
    Fault(
        "retention_mask",
        "the window before the place where the same prompt resumes keeps its keys",
        "its first block does not",
        _RETENTION,
        "first = min(first, max(i, replay - need))",
        "first = min(first, max(i, replay - need + 1))",
        recording="groups/chunked_local_68",
    ),
    Fault(
        "retention_segment",
        "with a retention interval the window before each multiple keeps its keys",
        "its first block does not",
        _RETENTION,
        "max(segment - need - (k - shift) % segment, 0)",
        "max(segment - need + 1 - (k - shift) % segment, 0)",
        recording="groups/mixed_79",
    ),
    Fault(
        "shared_boundary",
        "a prefix that only some groups have is worth keeping in the others",
        "it is not kept",
        _RETENTION,
        "if kv.requests.shared_boundary[r] > 0:",
        "if kv.requests.shared_boundary[r] < 0:",
        recording="groups/mixed_150",
    ),
    Fault(
        "partial_tail",
        "the prompt's last part of a block gets its key at the last unit that the same prompt can hit",
        "at the last unit of the prompt",
        _TAIL,
        "usable = kv.requests.prompt_len[r] if whole else kv.requests.prompt_len[r] - 1\n",
        "usable = kv.requests.prompt_len[r]\n",
        recording="groups/mixed_79",
    ),
    Fault(
        "groups_freed_backwards",
        "a request's tables are freed group by group, the first one first",
        "the last one first",
        _MANAGER,
        "    for g in range(kv.params.num_groups):\n        kv_tables.free_table(kv, slot, g)\n",
        "    for g in range(kv.params.num_groups - 1, -1, -1):\n        kv_tables.free_table(kv, slot, g)\n",
        recording="groups/mixed_50",
    ),
    Fault(
        "state_hit_at_once",
        "a Mamba state that this very step computes can't be hit before the next one",
        "it is hit at once",
        _MANAGER,
        "if kv_rules.waits_for_state(kv, slot):",
        "if False and kv_rules.waits_for_state(kv, slot):",
        recording="groups/mamba_92",
    ),
    Fault(
        "state_left_early",
        "a Mamba state is given up when the next one is computed",
        "a token early",
        _GROUPS,
        "        tokens = num_computed - 1\n",
        "        tokens = num_computed\n",
        recording="groups/mamba_61",
    ),
    Fault(
        "states_mid_block",
        "prefill chunks end where a Mamba state is cached",
        "they end anywhere",
        _SPLIT,
        "    if st.params.mamba_align:\n",
        "    if st.params.mamba_align < 0:\n",
        recording="groups/mamba_61",
    ),
    Fault(
        "draft_states_stay",
        "a Mamba request's blocks of drafts move to the end of its table",
        "they stay",
        _STATES,
        "            if i < first:\n",
        "            if i < 0:\n",
        recording="groups/speculative_41",
    ),
    Fault(
        "eagle_drop",
        "with a drafter that reads hidden states the last block of a hit is computed again",
        "it is not",
        _HITS,
        "        if drop and n > 0:\n            n -= 1\n",
        "",
        recording="groups/speculative_86",
    ),
    Fault(
        "lookahead_slots",
        "a drafter's slots beyond the scheduled tokens are allocated",
        "they are not",
        _GROUPS,
        "tokens = min(num_tokens + kv.params.lookahead, kv.params.max_model_len)",
        "tokens = min(num_tokens, kv.params.max_model_len)",
        recording="groups/speculative_50",
    ),
    Fault(
        "rejected_kept",
        "rejected drafts are taken back from the computed tokens",
        "they count as computed",
        _DRAFTS,
        "            rq.num_computed[r] -= rejected\n            hold_tokens(st.kv, -rejected)\n",
        "            rejected += 0\n",
        recording="groups/speculative_33",
    ),
)
