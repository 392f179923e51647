"""Distributions of token counts and of durations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from typing_extensions import Self

from workloads.spec.base import AlsoBare, Model, NonNegative, Positive, Tokens, TokensOrZero, key
from workloads.units import Duration


class Clamped(Model):
    """A distribution whose draws are rounded to integers and clamped (clamping moves the mean)."""

    min: TokensOrZero = key(1, "Smaller draws are raised to this.", "tokens")
    max: Tokens | None = key(None, "Larger draws are lowered to this; null: no limit.", "tokens")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max ({self.max}) is less than min ({self.min})")
        return self


class ConstantLength(Model):
    """Always the same length. A bare integer means this."""

    kind: Literal["constant"] = key("constant", "Always the same length.")
    value: TokensOrZero = key(..., "The length.", "tokens")


class UniformLength(Clamped):
    """Every integer of a range, both ends included, with equal probability."""

    kind: Literal["uniform"] = key("uniform", "Uniform over a range of integers.")
    low: TokensOrZero | None = key(None, "Smallest length; give it with `high`.", "tokens")
    high: Tokens | None = key(None, "Largest length.", "tokens")
    mean: Tokens | None = key(None, "Centre of the range; give it with `range_ratio`.", "tokens")
    range_ratio: float | None = key(
        None,
        "From floor(mean * (1 - range_ratio)) to ceil(mean * (1 + range_ratio)), as vLLM's random dataset.",
        ge=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        by_ends = self.low is not None and self.high is not None
        by_mean = self.mean is not None and self.range_ratio is not None
        given = [self.low, self.high, self.mean, self.range_ratio]
        if by_ends == by_mean or sum(value is not None for value in given) != 2:
            raise ValueError("give either low and high, or mean and range_ratio")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low ({self.low}) is greater than high ({self.high})")
        return self


class LognormalLength(Clamped):
    """A log-normal length, by its mean and coefficient of variation or by two quantiles."""

    kind: Literal["lognormal"] = key("lognormal", "Log-normal.")
    mean: Positive | None = key(None, "Mean before rounding and clamping; give it with `cv`.", "tokens")
    cv: NonNegative | None = key(None, "Coefficient of variation: standard deviation / mean.")
    p50: Positive | None = key(None, "Median; give it with `p90` or `p99`.", "tokens")
    p90: Positive | None = key(None, "90th percentile.", "tokens")
    p99: Positive | None = key(None, "99th percentile.", "tokens")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = {name for name in ("mean", "cv", "p50", "p90", "p99") if getattr(self, name) is not None}
        if given not in ({"mean", "cv"}, {"p50", "p90"}, {"p50", "p99"}):
            raise ValueError("give either mean and cv, or p50 and one of p90, p99")
        upper = self.p90 if self.p90 is not None else self.p99
        if self.p50 is not None and upper is not None and upper < self.p50:
            raise ValueError(f"the upper quantile ({upper}) is less than p50 ({self.p50})")
        return self


class GammaLength(Clamped):
    """A gamma-distributed length, by its mean and coefficient of variation (cv 1: exponential)."""

    kind: Literal["gamma"] = key("gamma", "Gamma.")
    mean: Positive = key(..., "Mean before rounding and clamping.", "tokens")
    cv: Positive = key(..., "Coefficient of variation: standard deviation / mean.")


class EmpiricalLength(Clamped):
    """Lengths drawn, with replacement, from one column of a CSV file with a header."""

    kind: Literal["empirical"] = key("empirical", "Drawn from a column of a CSV file.")
    path: str = key(
        ..., "CSV file; a relative path is looked for beside the config, then in the working folder."
    )
    column: str = key(..., "Name of the column that holds the lengths (integers).")


def _bare_integer(value: Any) -> Any:
    if type(value) is int:
        return {"kind": "constant", "value": value}
    if isinstance(value, str | float | bool | list) or value is None:
        raise ValueError(
            f"expected an integer number of tokens, or a distribution with a `kind`, got {value!r}"
        )
    return value


def _at_least_one(length: Any) -> Any:
    if (length.value if isinstance(length, ConstantLength) else length.min) < 1:
        raise ValueError("this length must be at least 1 token")
    return length


Length = Annotated[
    Annotated[
        ConstantLength | UniformLength | LognormalLength | GammaLength | EmpiricalLength,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_bare_integer),
    AlsoBare({"type": "integer", "minimum": 0}),
]


#: A length that can't be 0.
PositiveLength = Annotated[Length, AfterValidator(_at_least_one)]


class JointLengths(Model):
    """Prompt and output lengths drawn together, as rows of a CSV file with a header, with replacement."""

    path: str = key(
        ..., "CSV file; a relative path is looked for beside the config, then in the working folder."
    )
    prompt_column: str = key(..., "Column of the prompt lengths, tokens.")
    output_column: str = key(..., "Column of the output lengths, tokens.")


class ConstantTime(Model):
    """Always the same time. A bare duration means this."""

    kind: Literal["constant"] = key("constant", "Always the same time.")
    value: Duration = key(..., "The time.", "duration")


class UniformTime(Model):
    """Uniform between two times."""

    kind: Literal["uniform"] = key("uniform", "Uniform between two times.")
    low: Duration = key(..., "Shortest time.", "duration")
    high: Duration = key(..., "Longest time.", "duration")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is greater than high")
        return self


class ExponentialTime(Model):
    """Exponential."""

    kind: Literal["exponential"] = key("exponential", "Exponential.")
    mean: Duration = key(..., "Mean time.", "duration")
    max: Duration | None = key(None, "Longer draws are lowered to this; null: no limit.", "duration")


class LognormalTime(Model):
    """Log-normal."""

    kind: Literal["lognormal"] = key("lognormal", "Log-normal.")
    mean: Duration = key(..., "Mean time.", "duration")
    cv: NonNegative = key(1.0, "Coefficient of variation: standard deviation / mean.")
    max: Duration | None = key(None, "Longer draws are lowered to this; null: no limit.", "duration")


class GammaTime(Model):
    """Gamma."""

    kind: Literal["gamma"] = key("gamma", "Gamma.")
    mean: Duration = key(..., "Mean time.", "duration")
    cv: Positive = key(1.0, "Coefficient of variation: standard deviation / mean.")
    max: Duration | None = key(None, "Longer draws are lowered to this; null: no limit.", "duration")


def _bare_duration(value: Any) -> Any:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    if isinstance(value, bool | list) or value is None:
        raise ValueError(f"expected a duration, or a distribution with a `kind`, got {value!r}")
    return value


Time = Annotated[
    Annotated[
        ConstantTime | UniformTime | ExponentialTime | LognormalTime | GammaTime, Field(discriminator="kind")
    ],
    BeforeValidator(_bare_duration),
    AlsoBare({"type": ["number", "string"]}),
]
