"""When requests, or sessions, begin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from workloads.spec.base import Count, Model, NonNegative, Positive, Rate, key
from workloads.spec.lengths import Time
from workloads.units import Duration


class PoissonArrivals(Model):
    """Independent arrivals: exponential gaps."""

    kind: Literal["poisson"] = key("poisson", "Exponential gaps.")
    rate: Rate = key(..., "Mean arrivals per second.", "1/s")


class GammaArrivals(Model):
    """Gamma-distributed gaps: burstier than Poisson for cv > 1, more regular for cv < 1."""

    kind: Literal["gamma"] = key("gamma", "Gamma-distributed gaps.")
    rate: Rate = key(..., "Mean arrivals per second.", "1/s")
    cv: Positive = key(..., "Coefficient of variation of the gaps; 1 is Poisson.")


class ConstantArrivals(Model):
    """Equal gaps; the first arrival is at time 0."""

    kind: Literal["constant"] = key("constant", "Equal gaps.")
    rate: Rate = key(..., "Arrivals per second.", "1/s")


class BurstArrivals(Model):
    """Two alternating states of exponential length, each with Poisson arrivals at its own rate (an MMPP)."""

    kind: Literal["bursts"] = key("bursts", "On-off bursts.")
    rate_on: Rate = key(..., "Arrivals per second during a burst.", "1/s")
    rate_off: NonNegative = key(0.0, "Arrivals per second between bursts.", "1/s")
    mean_on: Duration = key(..., "Mean length of a burst.", "duration")
    mean_off: Duration = key(..., "Mean time between bursts.", "duration")

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.mean_on == 0 or self.mean_off == 0:
            raise ValueError("mean_on and mean_off must be greater than 0")
        return self


class DiurnalArrivals(Model):
    """A Poisson process whose rate follows a sine: rate * (1 + amplitude * cos(2 pi (t - peak) / period))."""

    kind: Literal["diurnal"] = key("diurnal", "Sinusoidal rate.")
    rate: Rate = key(..., "Arrivals per second, averaged over a period.", "1/s")
    amplitude: float = key(0.5, "Swing as a fraction of the mean rate; 1: the rate falls to 0.", ge=0, le=1)
    period: Duration = key("24h", "Length of a cycle.", "duration", validate_default=True)
    peak: Duration = key("0s", "When the rate is highest first.", "duration", validate_default=True)

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.period == 0:
            raise ValueError("period must be greater than 0")
        return self


class ClosedLoopArrivals(Model):
    """N clients, each with one request (or session) at a time."""

    kind: Literal["closed_loop"] = key("closed_loop", "N clients, one request or session each at a time.")
    clients: Count = key(
        ..., "Clients that work at the same time (`--max-concurrency` of `vllm bench serve`)."
    )
    think_time: Time = key("0s", "Pause after an answer before the next.", "duration", validate_default=True)
    assignment: Literal["pool", "per_client"] = key(
        "pool",
        "`pool`: the next request in the list goes out whenever any request ends, as with a semaphore; "
        "`per_client`: each client has requests of its own. Sessions and mixtures always use `per_client`.",
    )


OpenLoopArrivals = Annotated[
    PoissonArrivals | GammaArrivals | ConstantArrivals | BurstArrivals | DiurnalArrivals,
    Field(discriminator="kind"),
]

Arrivals = Annotated[
    PoissonArrivals | GammaArrivals | ConstantArrivals | BurstArrivals | DiurnalArrivals | ClosedLoopArrivals,
    Field(discriminator="kind"),
]
