"""What a release takes where a config says nothing, asked of its own configuration classes.

Which keys it has at all, their defaults, and the modes in which it caches Mamba states: what the table of
releases (`sim.profiles`) says of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from sim.profiles import LATER_KEYS, default_retention, missing_keys, rules_of
from validation.suite import Row

if TYPE_CHECKING:
    from validation.releases import Worker

#: The variable that stood for prefix_cache_retention_interval before there was a key for it.
_RETENTION_VARIABLE = "VLLM_PREFIX_CACHE_RETENTION_INTERVAL"
#: Of `state_tables`: the modes with prefix caching that a release can be asked for.
_MODES = {"all": (), "chosen": ("align", "all"), "align": ("align",)}


def release_defaults() -> dict[str, Any]:
    """Key -> default of the vLLM of this process; keys that it does not have are left out.

    `async_scheduling` is None where vLLM decides; `mamba_cache_mode` has the modes, sorted, without "none".
    """
    import vllm.config.cache
    from vllm import envs
    from vllm.config import CacheConfig, SchedulerConfig

    configs = (CacheConfig(), SchedulerConfig(max_model_len=4096, is_encoder_decoder=False))
    found: dict[str, Any] = {}
    for name in ("gpu_memory_utilization", "async_scheduling", *LATER_KEYS):
        for config in configs:
            if hasattr(config, name):
                found[name] = getattr(config, name)
    if _RETENTION_VARIABLE in envs.environment_variables:
        found.setdefault("prefix_cache_retention_interval", getattr(envs, _RETENTION_VARIABLE))
    modes = get_args(getattr(vllm.config.cache, "MambaCacheMode", None))
    found["mamba_cache_mode"] = tuple(sorted(set(modes) - {"none"}))
    return found


def expected_defaults(release: str) -> dict[str, Any]:
    """The same by the table of releases."""
    rules = rules_of(release)
    values: dict[str, Any] = {
        "gpu_memory_utilization": float(rules.memory_utilization),
        "async_scheduling": False if rules.async_default == "off" else None,
        "scheduler_reserve_full_isl": rules.full_sequence_reserve == "on",
        "prefix_cache_retention_interval": default_retention(rules, None, hybrid=False),
        "mamba_cache_mode": _MODES[rules.state_tables],
    }
    missing = missing_keys(release)
    values |= {name: later.absent for name, later in LATER_KEYS.items() if name not in values}
    return {name: value for name, value in values.items() if name not in missing}


def check_defaults(worker: Worker) -> Row:
    """One row for the keys and defaults of a release."""
    real, ours = worker.ask("defaults"), expected_defaults(worker.release)
    assert isinstance(real, dict)
    problems = [
        f"{name}: vLLM {real.get(name, 'has none')}, here {ours.get(name, 'none')}"
        for name in sorted(real.keys() | ours.keys())
        if real.get(name, "") != ours.get(name, "")
    ]
    return Row(
        f"{worker.release}: keys and their defaults",
        "release / sim",
        len(real),
        "-" if problems else "all",
        "; ".join(problems) or None,
    )
