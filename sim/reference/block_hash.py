"""Identity of a full block: its tokens and everything before them.

vLLM 0.32.0 chains a cryptographic hash over (parent hash, the block's tokens, extra keys), see
``hash_block_tokens`` and ``get_request_block_hasher`` in ``vllm/v1/core/kv_cache_utils.py``. Only equality of
these hashes can be observed in block ids, so the twin numbers the distinct triples instead: equal chains get
the same number, different chains different numbers, without a chance of collision.
"""

from __future__ import annotations

from collections.abc import Sequence

NO_PARENT = -1
"""Stands in for the hash before the first block."""

BlockKey = tuple[int, int]
"""(block hash, group id): the key under which a group's block is cached."""


class BlockHasher:
    """Interns block chains; one instance per simulated engine.

    Args:
        hash_block_size: tokens per hashed block.
        lookahead: tokens behind a block that are part of its identity; it has none before they are known.
    """

    def __init__(self, hash_block_size: int, lookahead: int = 0) -> None:
        self.hash_block_size = hash_block_size
        self.lookahead = lookahead
        self._ids: dict[tuple[int, tuple[int, ...], str | None], int] = {}

    def hash_block_tokens(self, parent: int, tokens: tuple[int, ...], extra: str | None) -> int:
        """Number of the chain that ends in this block (>= 0).

        Args:
            parent: number of the chain before it, or ``NO_PARENT``.
            tokens: the block's token ids.
            extra: cache salt of the request, for its first block only.
        """
        return self._ids.setdefault((parent, tokens, extra), len(self._ids))

    def new_block_hashes(
        self, known: Sequence[int], token_ids: Sequence[int], cache_salt: str | None
    ) -> list[int]:
        """Hashes of the full blocks of ``token_ids`` that come after those in ``known``.

        An empty salt counts as none, as in vLLM.
        """
        size = self.hash_block_size
        parent = known[-1] if known else NO_PARENT
        fresh: list[int] = []
        reach = size + self.lookahead
        for start in range(len(known) * size, len(token_ids) - reach + 1, size):
            extra = cache_salt if start == 0 and cache_salt else None
            parent = self.hash_block_tokens(parent, tuple(token_ids[start : start + reach]), extra)
            fresh.append(parent)
        return fresh


def resolve_block_hashes(hashes: Sequence[int], hash_block_size: int, block_size: int) -> Sequence[int]:
    """The hashes seen at a coarser block size: each coarse block takes that of its last fine one.

    Raises:
        ValueError: ``block_size`` is not a multiple of ``hash_block_size``.
    """
    if block_size == hash_block_size:
        return hashes
    if block_size % hash_block_size:
        raise ValueError(f"block size {block_size} is not a multiple of the hash unit {hash_block_size}")
    ratio = block_size // hash_block_size
    return hashes[ratio - 1 :: ratio]
