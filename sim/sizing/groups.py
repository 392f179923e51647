"""Layers into KV-cache groups, as vLLM puts them (0.32.0, kv_cache_utils.get_kv_cache_groups).

Where releases differ, `Rules` say how (`sim.switches`).

All groups draw their blocks from one pool, so one block must have the same number of bytes in each: pages are
made equal (blocks of more tokens, or padding), and the groups get the same number of layers, as far as that
goes. Layouts whose blocks lie outermost in memory (an explicit VLLM_KV_CACHE_LAYOUT such as BLHNC) pack pages
of unequal size instead; that is not covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.profiles import Rules
from sim.sizing.specs import DEFAULT_RULES, CannotGroup, LayerSpec, can_merge, cdiv, merge, same_slots


@dataclass(frozen=True)
class Group:
    """Layers that share block tables.

    Attributes:
        layers: their places in the model's list of layer specs.
        spec: what the block manager sees: the layers' merged spec, or the first one's if they differ in
            shape.
        members: spec of each layer, in the order of `layers`.
        is_eagle_group: marked as the one with the drafter's layers, so that its hits alone lose a block.
    """

    layers: tuple[int, ...]
    spec: LayerSpec
    members: tuple[LayerSpec, ...]
    is_eagle_group: bool = False

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers of the group."""
        return sum(m.page_bytes for m in self.members)

    @property
    def content_bytes(self) -> int:
        """The same without the padding inside pages."""
        return sum(m.content_bytes for m in self.members)

    def blocks_per_request(
        self,
        max_model_len: int,
        in_flight_tokens: int,
        encoder_tokens: int = 0,
        state_needs: str = DEFAULT_RULES.state_needs,
    ) -> int:
        """Blocks that a request of `max_model_len` tokens holds at most; see `LayerSpec`."""
        return max(
            m.blocks_per_request(max_model_len, in_flight_tokens, encoder_tokens, state_needs)
            for m in self.members
        )


def group_layers(
    specs: Sequence[LayerSpec],
    hybrid_manager: bool = True,
    rules: Rules = DEFAULT_RULES,
    mark_last: bool = False,
) -> tuple[Group, ...]:
    """The groups of a model, in vLLM's order.

    Args:
        specs: of all layers with a KV cache, in the order in which the model makes them.
        hybrid_manager: False: window and chunk layers keep all tokens, like full attention
            (`--disable-hybrid-kv-cache-manager`).
        rules: group_ratio, bucket_specs, unequal_pages, unequal_states, latent_shapes and promoted_blocks
            count.
        mark_last: mark the group of the last layer as the drafter's where layers are split into groups, as
            with layers for multi-token prediction (_annotate_eagle_groups, since 0.31).

    Raises:
        CannotGroup: vLLM refuses these layers too.
    """
    specs = list(specs)
    if not hybrid_manager:
        specs = _promote(specs, rules)
    if not specs:
        return ()
    everything = range(len(specs))
    # Full attention with two windows raises ValueError in vLLM, and so ends the start-up.
    if specs[0].kind == "full" and all(s.kind == "full" for s in specs):
        windows = {s.sliding_window for s in specs} - {None}
        chunks = {s.attention_chunk_size for s in specs} - {None}
        if len(windows) > 1 or len(chunks) > 1:
            raise CannotGroup("all layers are kept as full attention, and their windows differ")
    if can_merge(specs, rules):
        merged = merge(specs, rules)
        return (Group(tuple(everything), merged, (merged,) * len(specs)),)
    if same_slots(specs, rules):
        return (Group(tuple(everything), specs[0], tuple(specs)),)
    try:
        unified = unify_pages(specs, rules)
    except CannotGroup:
        fallback = _full_fallback(specs, rules)
        if fallback is None:
            raise
        return fallback
    groups = _split(unified, rules)
    if mark_last:
        groups = tuple(replace(g, is_eagle_group=len(specs) - 1 in g.layers) for g in groups)
    return groups


def unify_pages(specs: Sequence[LayerSpec], rules: Rules = DEFAULT_RULES) -> list[LayerSpec]:
    """The specs with pages of one size, the largest that occurs (unify_kv_cache_spec_page_size).

    A smaller page gets more tokens a block if it divides the largest. A state, or a page that does not
    divide it, is padded or refused, as `unequal_pages` says.
    """
    largest = max(s.page_bytes for s in specs)
    return [s if s.page_bytes == largest else _page_of(s, largest, rules.unequal_pages) for s in specs]


def _page_of(s: LayerSpec, largest: int, unequal_pages: str) -> LayerSpec:
    padded = replace(s, page_size_padded=largest)
    if s.kind == "mamba":
        if unequal_pages in ("grow", "pad_attention"):
            raise CannotGroup("a state is smaller than the largest page, and can't be padded")
        return padded
    if largest % s.page_bytes == 0:
        grown = replace(s, block_size=s.block_size * (largest // s.page_bytes))
        if grown.page_bytes != largest:
            raise CannotGroup("a padded page can't take more tokens")
        return grown
    if unequal_pages == "grow" or (s.kind == "mla" and unequal_pages == "pad_but_latent"):
        what = "MLA pages" if s.kind == "mla" else "pages"
        raise CannotGroup(
            f"{what} of {s.page_bytes} bytes don't divide the largest page, {largest} bytes, and can't be"
            " padded"
        )
    return padded


def _split(specs: Sequence[LayerSpec], rules: Rules) -> tuple[Group, ...]:
    """Equal layers into buckets, buckets into groups of one number of layers."""
    buckets: list[tuple[list[LayerSpec], list[int]]] = []
    by_spec: dict[LayerSpec, list[int]] = {}
    for i, s in enumerate(specs):
        by_spec.setdefault(s, []).append(i)
    mergeable = rules.bucket_specs == "mergeable"
    for s, layers in by_spec.items():
        for kinds, members in buckets:
            if mergeable and s.kind == kinds[0].kind and can_merge([*kinds, s], rules):
                members.extend(layers)
                kinds.append(s)
                break
        else:
            buckets.append(([s], list(layers)))
    counts = [len(layers) for _, layers in buckets]
    size = max(counts) if max(counts) < min(counts) * float(rules.group_ratio) else min(counts)
    groups: list[Group] = []
    for _, layers in buckets:
        # Every n-th layer, so that pipeline stages get layers of every group.
        n = cdiv(len(layers), size)
        for first in range(n):
            chosen = tuple(layers[first::n])
            spec = merge([specs[i] for i in chosen], rules)
            groups.append(Group(chosen, spec, (spec,) * len(chosen)))
    return tuple(groups)


def _promote(specs: Sequence[LayerSpec], rules: Rules) -> list[LayerSpec]:
    """Window and chunk layers as full attention, beside layers that are so (_promote_local_kv_cache_specs).

    Models with states can't be brought to one kind: vLLM refuses to turn the hybrid manager off for them.
    """
    out = list(specs)
    if not out or can_merge(out, rules) or same_slots(out, rules):
        return out
    local = ("sliding_window", "chunked_local")
    sizes = {s.block_size for s in out if s.is_full}
    if sizes and any(s.kind in local for s in out):
        one_size = next(iter(sizes)) if len(sizes) == 1 and rules.promoted_blocks == "full" else None
        for i, s in enumerate(out):
            if s.kind in local:
                size = one_size or s.block_size
                padded = s.page_size_padded
                if padded is not None:
                    padded = max(padded, s.content_bytes * size // s.block_size)
                out[i] = replace(s, kind="full", block_size=size, page_size_padded=padded)
    if not (can_merge(out, rules) or same_slots(out, rules)):
        raise CannotGroup("with the hybrid KV-cache manager off, the layers can't be brought to one kind")
    return out


def _full_fallback(specs: Sequence[LayerSpec], rules: Rules) -> tuple[Group, ...] | None:
    """MLA beside windows whose pages can't be made equal: all as full attention in one group.

    Since 0.27; until pages of latent attention could no longer be padded, nothing needed it.
    """
    kinds = {s.kind for s in specs}
    if rules.unequal_pages != "pad_but_latent":
        return None
    if "chunked_local" in kinds or not {"mla", "sliding_window"} <= kinds:
        return None
    try:
        promoted = _promote(specs, rules)
    except CannotGroup:
        return None
    if not same_slots(promoted, rules):
        return None
    return (Group(tuple(range(len(promoted))), promoted[0], tuple(promoted)),)
