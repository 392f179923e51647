"""Small engines for stories that are computed by hand: 4 tokens a block, one synchronous step at a time."""

from __future__ import annotations

from typing import Any

from sim.reference import Request, Scheduler, SchedulerOutput, Settings
from sim.reference.block_hash import BlockHasher


class Story:
    """A synchronous engine and what one wants to see of it.

    groups: as in an engine configuration; changed: settings that differ from 4 tokens a block, 20 blocks, 64
    tokens a step.
    """

    def __init__(self, groups: list[dict[str, Any]], **changed: Any) -> None:
        self.settings = Settings.from_dict(
            {
                "block_size": 4,
                "num_gpu_blocks": 20,
                "max_num_seqs": 8,
                "max_num_batched_tokens": 64,
                **changed,
                "kv_cache_groups": groups,
            }
        )
        self.scheduler = Scheduler(self.settings)
        self.kv = self.scheduler.kv_cache_manager
        self.pool = self.kv.block_pool
        self._hasher = None
        if self.settings.enable_prefix_caching:
            self._hasher = BlockHasher(self.kv.hash_block_size, self.settings.hash_lookahead)

    def request(self, name: str, prompt: list[int], output: int = 9, **changed: Any) -> Request:
        """A request that is not queued."""
        changed = {"encoder_tokens": self.settings.encoder_tokens, **changed}
        return Request(name, prompt, [7] * output, block_hasher=self._hasher, **changed)

    def add(self, name: str, prompt: list[int], output: int = 9, **changed: Any) -> Request:
        """Queue a request."""
        request = self.request(name, prompt, output, **changed)
        self.scheduler.add_request(request)
        return request

    def step(self) -> dict[str, int]:
        """One step; the tokens that it scheduled."""
        batch: SchedulerOutput = self.scheduler.schedule()
        self.scheduler.update_from_output(batch)
        self.scheduler.update_draft_tokens(batch)
        return batch.num_scheduled_tokens

    def tables(self, name: str) -> list[list[int]]:
        """Block ids by group; 0 is the null block."""
        return [[b.block_id for b in table] for table in self.kv.get_blocks(name)]

    def hit(self, prompt: list[int]) -> tuple[list[list[int]], int, int]:
        """What a request with this prompt would hit: ids by group, tokens, shared-prefix boundary."""
        blocks, length, boundary = self.kv.get_computed_blocks(self.request("asks", prompt))
        return [[b.block_id for b in group] for group in blocks], length, boundary

    @property
    def queue(self) -> list[int]:
        """Ids in the free queue."""
        return self.pool.free_block_queue.block_ids()

    @property
    def keyed(self) -> list[int]:
        """Ids of the blocks that carry a key."""
        return [b.block_id for b in self.pool.blocks if b.block_hash is not None]


def text(length: int, own: int = 0) -> list[int]:
    """`length` tokens, the last `own` of which no other text has."""
    return [*range(length - own), *(1000 * length + i for i in range(own))]
