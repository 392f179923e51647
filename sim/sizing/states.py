"""Prefix caching of models with recurrent states: whether it is on by default, and how states are kept.

    none    one state of a request, the running one
    align   the running one, and those at the ends of prefill chunks
    all     one in every block of a request's tokens

0.13 and 0.14 know `all` alone, and turn prefix caching off for a model whose kernels can't do it. Then comes
`align` for these, and since 0.28 for all unless the user asks for `all`, which 0.32 no longer has
(MambaModelConfig.verify_and_update_config, EngineArgs._set_default_chunked_prefill_and_prefix_caching_args).
"""

from __future__ import annotations

from sim.models import ModelShape
from sim.profiles import Rules

#: Types of models whose classes have SupportsMambaPrefixCaching (0.13 to 0.31).
KEEPS_ALL_STATES = frozenset(
    {"jamba", "mamba", "mamba2", "bamba", "nemotron_h", "zamba2", "granitemoehybrid", "falcon_h1"}
)


def has_states(model: ModelShape) -> bool:
    """Whether a layer keeps a recurrent state."""
    return any(c.kind == "mamba" for c in model.cache_layers)


def keeps_all_states(model: ModelShape) -> bool:
    """Whether the model's kernels can keep a state in every block."""
    return model.model_type in KEEPS_ALL_STATES


def prefix_caching(model: ModelShape, asked: bool | None, rules: Rules) -> bool:
    """Whether prefix caching is on.

    Args:
        model: of any kind.
        asked: of the user; None: the release's default for the model
            (ModelConfig.is_prefix_caching_supported).
        rules: of the release.
    """
    if asked is None:
        asked = not (model.is_attention_free or model.is_encoder_decoder)
        asked = asked and (rules.hybrid_caching == "on" or not model.is_hybrid)
    able = rules.state_mode != "all_or_off" or not has_states(model) or keeps_all_states(model)
    return asked and able


def mamba_cache_mode(
    model: ModelShape, caching: bool, rules: Rules, asked: str | None = None, drafts: bool = False
) -> str:
    """How states are kept: "none", "align" or "all"; "none" for a model without states.

    Args:
        model: of any kind.
        caching: whether prefix caching is on.
        rules: of the release.
        asked: of the user (`--mamba-cache-mode`); None: the release's default for the model.
        drafts: whether there is speculative decoding.
    """
    if not caching or not has_states(model):
        return "none"
    if rules.state_mode == "all_or_off":
        return "all"
    able = keeps_all_states(model)
    if asked in ("all", "align"):
        return asked if able else "align"
    default_all = rules.state_mode == "all" or (rules.state_mode == "all_undrafted" and not drafts)
    return "all" if default_all and able else "align"
