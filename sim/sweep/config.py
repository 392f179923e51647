"""The models of a sweep file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from sim.config import MAX_SEED
from sim.config_types import Strict, key
from sim.sweep.metrics import DEFAULT_METRICS

Number = int | float
Values = Annotated[list[Any], Field(min_length=1)]


def _list_or_section(value: Any) -> str:
    """Which of the two a user meant, so that a problem is told of that one."""
    return "list" if isinstance(value, list) else "section"


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class RangeSpec(Strict):
    """Numbers at equal distances: `{from: 0.8, to: 1.6, step: 0.2}`; `to` counts if the steps meet it."""

    from_: Number = Field(..., alias="from", description="The first value.")
    to: Number = key(..., "No value goes beyond it.")
    step: Number = key(..., "Distance of two values; negative to go down.")


class LogRangeSpec(Strict):
    """Numbers at equal ratios: `{from: 8, to: 256, factor: 2}`, or `{from: 1, to: 100, points: 5}`."""

    from_: Annotated[Number, Field(gt=0)] = Field(..., alias="from", description="The first value.")
    to: Annotated[Number, Field(gt=0)] = key(..., "No value goes beyond it.")
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = key(
        None, "Ratio of two values; below 1 to go down. Either this or `points`."
    )
    points: Annotated[int, Field(ge=2, le=10_000)] | None = key(
        None, "How many values, both ends included; whole numbers if both ends are (equal ones count once)."
    )

    @model_validator(mode="after")
    def _one_way(self) -> LogRangeSpec:
        if (self.factor is None) == (self.points is None):
            raise ValueError("must have either 'factor' or 'points'")
        return self


class ValuesSpec(Strict):
    """The values of one key."""

    values: Values | None = key(None, "The values themselves, of any type.")
    range: RangeSpec | None = key(None, "Numbers at equal distances.")
    log_range: LogRangeSpec | None = key(None, "Numbers at equal ratios.")


class AxisSpec(ValuesSpec):
    """An axis: what one key, or several together, go through."""

    zip: (
        Annotated[
            dict[
                str,
                Annotated[
                    Annotated[Values, Tag("list")] | Annotated[ValuesSpec, Tag("section")],
                    Discriminator(_list_or_section),
                ],
            ],
            Field(min_length=1),
        ]
        | None
    ) = key(
        None,
        "Several keys that change together, each with its values (all equally many); the axis itself then has"
        " a name of your own.",
    )
    label: str | None = key(None, "What the axis is called in tables and plots; null: the key's last part.")
    labels: list[str] | None = key(None, "What each value is called; null: the value itself.")


class SweepConfig(Strict):
    """A sweep: one config, the keys that change, the seeds, and the numbers that are looked at."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] | None = key(
        None, "Name of the sweep and of its folder, runs/sweep-NAME; null: the file's name."
    )
    title: str | None = key(None, "Heading of the page; null: the name.")
    description: str | None = key(None, "What the sweep is for; shown below the heading.")
    base: str | dict[str, Any] = key(
        ...,
        "The config that all points share: a path, looked for beside the sweep file, then in the working"
        " folder; or the config itself as a section.",
    )
    axes: Annotated[
        dict[
            str,
            Annotated[
                Annotated[Values, Tag("list")] | Annotated[AxisSpec, Tag("section")],
                Discriminator(_list_or_section),
            ],
        ],
        Field(min_length=1),
    ] = key(
        ...,
        "What changes: a key of the config by its dotted path (`engine.block_size`,"
        " `workload.clients.0.weight`) and its values. Several axes: every combination.",
    )
    seeds: Annotated[int, Field(ge=1, le=10_000)] | Annotated[list[Seed], Field(min_length=1)] = key(
        1,
        "How many seeds each point is simulated with, beginning with the config's; or the seeds. All points"
        " have the same ones. If the workload is the same for every seed (a trace), only the first is run.",
    )
    metrics: Annotated[list[str], Field(min_length=1)] = key(
        list(DEFAULT_METRICS),
        "Names of the metrics shown, the most important first; points.parquet has all of them.",
    )
