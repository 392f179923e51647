"""From a model and a GPU to a pool of KV blocks, as vLLM computes it at start-up.

`layers` makes the spec of each layer, `states` says how recurrent states are kept, `groups` puts layers into
KV-cache groups, `plan` turns bytes into blocks, tokens and concurrency: these are exact (`python -m
validation sizing` compares them with the planners of vLLM's releases). `budget` estimates what else lies in
the memory. `report` and `picture` show it all (`python -m sim size`).
"""

from sim.sizing.budget import (
    activation_bytes,
    estimated_parts,
    left_over,
    requested_bytes,
    weight_bytes,
)
from sim.sizing.groups import Group, group_layers
from sim.sizing.layers import CacheArgs, CacheLayout, cache_layout, element_bytes, hybrid_manager
from sim.sizing.plan import Limits, PoolPlan, plan_pool
from sim.sizing.pool import PoolSize, core_groups
from sim.sizing.specs import CannotGroup, LayerSpec, Refusal, unread_share
from sim.sizing.states import mamba_cache_mode, prefix_caching

__all__ = [
    "CacheArgs",
    "CacheLayout",
    "CannotGroup",
    "Group",
    "LayerSpec",
    "Limits",
    "PoolPlan",
    "PoolSize",
    "Refusal",
    "activation_bytes",
    "cache_layout",
    "core_groups",
    "element_bytes",
    "estimated_parts",
    "group_layers",
    "hybrid_manager",
    "left_over",
    "mamba_cache_mode",
    "plan_pool",
    "prefix_caching",
    "requested_bytes",
    "unread_share",
    "weight_bytes",
]
