"""The `step_time:` section: how long one engine step takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim.config_types import Cost, Positive, Strict, key

Efficiency = Annotated[float, Field(gt=0.0, le=1.0)]


class ConstantStep(Strict):
    """Every step takes equally long, whatever is in it."""

    kind: Literal["constant"] = key("constant", "A constant.")
    step: Cost = key(..., "Duration of a step.", "duration")


class AffineStep(Strict):
    """A sum of costs: overhead, prefill tokens, decode sequences, context of decodes, encoder tokens."""

    kind: Literal["affine"] = key("affine", "A sum of costs.")
    overhead: Cost = key(..., "Cost of any step.", "duration")
    prefill_token: Cost = key("0ns", "Cost of each prefill token.", "duration")
    decode_sequence: Cost = key("0ns", "Cost of each decoding request.", "duration")
    context_token: Cost = key("0ns", "Cost of each token of context that a decode reads.", "duration")
    encoder_token: Cost = key(
        "0ns", "Cost of each token that goes through the encoder (models with cross attention).", "duration"
    )


class RooflineStep(Strict):
    """The slower of compute and memory traffic, from `model` and `gpu`, and an overhead."""

    kind: Literal["roofline"] = key("roofline", "From the model's shape and the GPU's data sheet.")
    mfu: Efficiency = key(
        0.5, "Share of the peak FLOP/s that matrix products reach.", "fraction of the data sheet's rate"
    )
    mbu: Efficiency = key(
        0.75, "Share of the peak memory bandwidth that is reached.", "fraction of the data sheet's rate"
    )
    overhead: Cost = key("500us", "Cost of any step: launches, sampling, input preparation.", "duration")
    allreduce_latency: Cost = key(
        "10us",
        "Start-up cost of one all-reduce (two in each layer with tensor parallelism).",
        "duration",
    )
    link_utilization: Efficiency = key(
        0.7, "Share of the GPU-to-GPU bandwidth that is reached.", "fraction of the data sheet's rate"
    )
    typical_context: Positive = key(
        4096,
        "Context at which window and chunk layers are charged: each context token costs them at most"
        " window / typical_context of what it costs a layer of full attention.",
        "tokens",
    )


class TableStep(Strict):
    """A table fitted from recorded steps: medians on a grid, monotone, interpolated between."""

    kind: Literal["table"] = key("table", "Fitted from recorded steps.")
    path: str = key(
        ...,
        "CSV or Parquet with the columns `scheduled_tokens`, `context_tokens` and one of `duration_ns`,"
        " `duration_us`, `duration_ms`, `duration_s`. A relative path is looked for beside the config,"
        " then in the working folder.",
    )
    token_bins: Positive = key(24, "Grid points over scheduled tokens, at most.")
    context_bins: Positive = key(16, "Grid points over context tokens, at most.")


StepTimeConfig = Annotated[ConstantStep | AffineStep | RooflineStep | TableStep, Field(discriminator="kind")]

STEP_TIME_KINDS: dict[str, type[Strict]] = {
    "roofline": RooflineStep,
    "affine": AffineStep,
    "constant": ConstantStep,
    "table": TableStep,
}
