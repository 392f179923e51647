"""The simulator's answers in the same form as `real_plan`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.models import ModelShape
from sim.models.drafters import find_drafter
from sim.profiles import DEFAULT_RELEASE, Rules, rules_of
from sim.sizing import (
    CacheArgs,
    CacheLayout,
    CannotGroup,
    Limits,
    PoolPlan,
    cache_layout,
    hybrid_manager,
    mamba_cache_mode,
    plan_pool,
    prefix_caching,
)

if TYPE_CHECKING:
    from validation.sizing.real_layers import Question

DEFAULT_RULES = rules_of(DEFAULT_RELEASE)


def our_layout(q: Question, model: ModelShape, rules: Rules = DEFAULT_RULES) -> CacheLayout:
    """Our specs of the model's layers; raises CannotGroup."""
    return cache_layout(model, cache_args(q, model, rules), our_drafter(q, model))


def our_drafter(q: Question, model: ModelShape) -> ModelShape | None:
    """The question's drafter, if it has layers."""
    if q.speculative_method == "mtp":
        return model.mtp
    if q.speculative_method is None or q.speculative_model is None:
        return None
    return find_drafter(q.speculative_model, q.speculative_method, model)


def cache_args(q: Question, model: ModelShape, rules: Rules) -> CacheArgs:
    """The question's arguments in our terms."""
    return CacheArgs(
        block_size=q.block_size,
        tensor_parallel=q.tensor_parallel_size,
        kv_cache_dtype=q.kv_cache_dtype,
        dtype=model.dtype,
        enable_prefix_caching=q.enable_prefix_caching,
        max_model_len=q.max_model_len or model.max_position,
        capability=q.capability,
        num_speculative_tokens=q.num_speculative_tokens,
        mamba_cache_mode=q.mamba_cache_mode,
        rules=rules,
    )


def our_engine(q: Question, model: ModelShape, rules: Rules) -> dict[str, Any]:
    """What the release makes of the arguments, as `release.engine_facts`."""
    caching = prefix_caching(model, q.enable_prefix_caching, rules)
    facts: dict[str, Any] = {"enable_prefix_caching": caching}
    if model.is_hybrid or model.is_attention_free:
        drafts = q.num_speculative_tokens > 0
        facts["mamba_cache_mode"] = mamba_cache_mode(model, caching, rules, q.mamba_cache_mode, drafts)
    return facts


def limits(q: Question, model: ModelShape, rules: Rules) -> Limits:
    """What decides the blocks of one request."""
    encoder = q.max_num_batched_tokens if model.is_encoder_decoder else 0
    batches = 2 if q.async_scheduling and rules.admission_cap == "in_flight" else 1
    return Limits(q.max_model_len or model.max_position, q.max_num_batched_tokens * batches, encoder, rules)


def our_plan(q: Question, model: ModelShape, rules: Rules = DEFAULT_RULES) -> dict[str, Any]:
    """Groups, blocks and concurrency as we plan them."""
    try:
        specs = list(our_layout(q, model, rules).specs)
    except CannotGroup as why:
        return {"refused": str(why)}
    marking = rules.draft_hits == "drop" and rules.mtp_group == "marked"
    return planned(
        specs,
        q.available_bytes,
        limits(q, model, rules),
        our_hybrid_manager(q, model, rules),
        q.num_gpu_blocks_override,
        marking and q.speculative_method == "mtp",
    )


def our_hybrid_manager(q: Question, model: ModelShape, rules: Rules) -> bool:
    """Whether the hybrid KV-cache manager is on."""
    return hybrid_manager(model, q.disable_hybrid_kv_cache_manager, q.speculative_method, rules)


def planned(
    specs: list[Any],
    available: int,
    limit: Limits,
    hybrid: bool,
    override: int | None,
    mark_last: bool = False,
) -> dict[str, Any]:
    """The same for given specs."""
    try:
        plan = plan_pool(
            specs,
            available,
            limit,
            hybrid_manager=hybrid,
            num_gpu_blocks_override=override,
            mark_last=mark_last,
        )
    except CannotGroup as why:
        return {"refused": str(why)}
    return as_dict(plan)


def as_dict(plan: PoolPlan) -> dict[str, Any]:
    """A plan in the form of `real_plan`."""
    if not plan.groups:
        return {"groups": [], "num_blocks": plan.num_blocks}
    if not plan.starts:
        return {"refused": f"a request of {plan.limits.max_model_len} tokens does not fit"}
    groups = []
    for g in plan.groups:
        pages = [m.page_bytes for m in g.members]
        groups.append(
            {
                "kind": g.spec.kind,
                "layers": list(g.layers),
                "block_size": g.spec.block_size,
                "page_bytes": pages[0] if len(set(pages)) == 1 else pages,
            }
            | ({"is_eagle_group": True} if g.is_eagle_group else {})
        )
    return {
        "groups": groups,
        "num_blocks": plan.num_blocks,
        "tokens": plan.tokens,
        "max_concurrency": plan.max_concurrency,
        "pool_bytes": plan.used_bytes,
    }
