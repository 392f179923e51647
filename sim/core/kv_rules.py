"""The rules of KV-cache groups, in the version that the engine's groups need: see ``switch``."""

from __future__ import annotations

from sim.core import copies, kv_cache_coordinator, kv_groups, kv_plain, kv_tables, mamba_split
from sim.core.switch import Switch

find_longest_cache_hit = Switch(kv_plain.find_longest_cache_hit, kv_cache_coordinator.find_longest_cache_hit)
assume_hits = Switch(kv_plain.find_longest_cache_hit, kv_cache_coordinator.assume_hits)
waits_for_state = Switch(kv_plain.waits_for_state, kv_cache_coordinator.waits_for_state, "windows_only")
cache_blocks = Switch(kv_plain.cache_blocks, kv_cache_coordinator.cache_blocks)
skipped_blocks = Switch(kv_plain.skipped_blocks, kv_groups.skipped_blocks)
remove_left_behind = Switch(kv_plain.remove_left_behind, kv_groups.remove_left_behind)
num_new_blocks = Switch(kv_plain.num_new_blocks, kv_groups.num_new_blocks)
allocate_new_blocks = Switch(kv_plain.allocate_new_blocks, kv_groups.allocate_new_blocks)
outgrows_tables = Switch(kv_plain.outgrows_tables, kv_groups.outgrows_tables)
adopt_hits = Switch(kv_plain.adopt_hits, kv_tables.adopt_hits)
free_table = Switch(kv_plain.free_table, kv_tables.free_table)
quiet_tokens = Switch(kv_plain.quiet_tokens, kv_groups.quiet_tokens)
fit_chunk = Switch(kv_plain.fit_chunk, mamba_split.fit_chunk, "windows_only")
release_copies = Switch(copies.no_copies, copies.release_copies, "windows_only")
