"""The simulator's answers in the same form as `real_plan`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.models import ModelShape
from sim.models.drafters import find_drafter
from sim.sizing import CacheArgs, CacheLayout, CannotGroup, Limits, PoolPlan, cache_layout, plan_pool

if TYPE_CHECKING:
    from validation.sizing.real_layers import Question


def our_layout(q: Question, model: ModelShape) -> CacheLayout:
    """Our specs of the model's layers."""
    return cache_layout(model, cache_args(q, model), our_drafter(q, model))


def our_drafter(q: Question, model: ModelShape) -> ModelShape | None:
    """The question's drafter, if it has layers."""
    if q.speculative_method == "mtp":
        return model.mtp
    if q.speculative_method is None or q.speculative_model is None:
        return None
    return find_drafter(q.speculative_model, q.speculative_method, model)


def cache_args(q: Question, model: ModelShape) -> CacheArgs:
    """The question's arguments in our terms."""
    caching = q.enable_prefix_caching
    if caching is None:
        caching = not (model.is_attention_free or model.is_encoder_decoder)
    return CacheArgs(
        block_size=q.block_size,
        tensor_parallel=q.tensor_parallel_size,
        kv_cache_dtype=q.kv_cache_dtype,
        dtype=model.dtype,
        enable_prefix_caching=caching,
        max_model_len=q.max_model_len or model.max_position,
        capability=q.capability,
        num_speculative_tokens=q.num_speculative_tokens,
    )


def limits(q: Question, model: ModelShape) -> Limits:
    """What decides the blocks of one request."""
    encoder = q.max_num_batched_tokens if model.is_encoder_decoder else 0
    in_flight = q.max_num_batched_tokens * (2 if q.async_scheduling else 1)
    return Limits(q.max_model_len or model.max_position, in_flight, encoder)


def our_plan(q: Question, model: ModelShape) -> dict[str, Any]:
    """Groups, blocks and concurrency as we plan them."""
    return planned(
        list(our_layout(q, model).specs),
        q.available_bytes,
        limits(q, model),
        not q.disable_hybrid_kv_cache_manager,
        q.num_gpu_blocks_override,
        q.speculative_method == "mtp",
    )


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
