"""The models of the workload section: durations, shorthands, what is refused, what is written back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from workloads.spec import KINDS, WorkloadSpec, parse_spec
from workloads.units import MAX_DURATION_NS, Duration, format_duration, parse_duration

POISSON = {"kind": "poisson", "rate": 2}


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("500ms", 500_000_000),
        ("2s", 2_000_000_000),
        ("1.5 s", 1_500_000_000),
        ("1min", 60_000_000_000),
        ("0.5h", 1_800_000_000_000),
        ("2d", 172_800_000_000_000),
        ("7us", 7_000),
        ("3ns", 3),
        (".5ms", 500_000),
        (0, 0),
        (2, 2_000_000_000),
        (0.1, 100_000_000),
        (1e-9, 1),
        ("0.1s", 100_000_000),
    ],
)
def test_durations(text: Any, ns: int) -> None:
    assert parse_duration(text) == ns


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "5",
        "s",
        "5 parsec",
        "1e3s",
        "-1s",
        -1,
        True,
        None,
        [1],
        float("nan"),
        float("inf"),
        "1s 2s",
        1e300,
    ],
)
def test_bad_durations(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"duration|expected|unknown unit|between"):
        parse_duration(bad)


@given(st.integers(0, MAX_DURATION_NS))
def test_durations_are_written_exactly(ns: int) -> None:
    assert parse_duration(format_duration(ns)) == ns


class Holder(BaseModel):
    wait: Duration = 1_500_000_000


def test_duration_field_is_written_as_text() -> None:
    assert Holder().model_dump() == {"wait": "1500ms"}
    assert Holder(wait="2min").wait == 120_000_000_000
    assert json.loads(Holder(wait=3).model_dump_json()) == {"wait": "3s"}
    assert "anyOf" in Holder.model_json_schema()["properties"]["wait"]


def specs() -> dict[str, dict[str, Any]]:
    """The shortest valid section of each kind."""
    sessions = {"arrivals": POISSON, "duration": "1min"}
    return {
        "chat": {"kind": "chat", **sessions},
        "agents": {"kind": "agents", **sessions},
        "rag": {"kind": "rag", **sessions},
        "code": {"kind": "code", **sessions},
        "batch": {"kind": "batch", "num_requests": 10},
        "sampling": {"kind": "sampling", **sessions},
        "random": {"kind": "random", **sessions},
        "mix": {"kind": "mix", "clients": [{"name": "a", "client": {"kind": "batch", "num_requests": 3}}]},
        "trace": {"kind": "trace", "path": "x.jsonl"},
    }


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_written_back_is_read_again(kind: str) -> None:
    spec = parse_spec(specs()[kind])
    assert parse_spec(spec.model_dump()) == spec
    assert parse_spec(json.loads(spec.model_dump_json())) == spec
    assert next(iter(spec.model_dump())) == "kind"


def test_every_field_is_documented() -> None:
    schema = TypeAdapter(WorkloadSpec).json_schema()
    for name, model in schema["$defs"].items():
        for key, field in model["properties"].items():
            assert field.get("description"), f"{name}.{key} has no description"
            if key.endswith("_len") or key in {"max_tokens", "max_context"}:
                assert field.get("unit") == "tokens", f"{name}.{key} has no unit"


def test_shorthands() -> None:
    spec = parse_spec({**specs()["chat"], "user_len": 50, "think_time": "3s"})
    assert spec.model_dump()["user_len"] == {"kind": "constant", "value": 50}
    assert spec.model_dump()["think_time"] == {"kind": "constant", "value": "3s"}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("chat", {"arivals": 1}, "Extra inputs are not permitted"),
        ("chat", {"user_len": "4k"}, "expected an integer number of tokens"),
        ("chat", {"user_len": 4.0}, "expected an integer number of tokens"),
        ("chat", {"user_len": True}, "expected an integer number of tokens"),
        ("chat", {"user_len": 0}, "at least 1 token"),
        ("chat", {"user_len": {"kind": "uniform", "low": 0, "high": 4, "min": 0}}, "at least 1 token"),
        ("chat", {"user_len": {"kind": "uniform", "low": 5, "high": 4}}, r"low \(5\) is greater than high"),
        ("chat", {"user_len": {"kind": "uniform", "low": 5, "mean": 4}}, "either low and high, or mean and"),
        ("chat", {"user_len": {"kind": "lognormal", "mean": 4}}, "either mean and cv, or p50"),
        ("chat", {"user_len": {"kind": "lognormal", "p50": 4, "p90": 3}}, "less than p50"),
        ("chat", {"user_len": {"kind": "gamma", "mean": 4, "cv": 0}}, "greater than 0"),
        (
            "chat",
            {"user_len": {"kind": "lognormal", "mean": 4, "cv": 1, "min": 9, "max": 3}},
            "less than min",
        ),
        ("chat", {"user_len": {"kind": "zipf"}}, "does not match any of the expected tags"),
        ("chat", {"think_time": [1]}, "expected a duration"),
        ("chat", {"think_time": {"kind": "uniform", "low": "2s", "high": "1s"}}, "low is greater than high"),
        ("chat", {"turns": 0.5}, "greater than or equal to 1"),
        ("chat", {"duration": None}, "give duration, num_sessions or both"),
        (
            "chat",
            {"arrivals": {"kind": "closed_loop", "clients": 3}},
            "arrivals need num_sessions",
        ),
        (
            "chat",
            {"arrivals": {"kind": "closed_loop", "clients": 3}, "num_sessions": 3},
            "duration has no meaning with closed_loop",
        ),
        ("random", {"arrivals": {"kind": "poisson", "rate": 0}}, "greater than 0"),
        ("random", {"arrivals": {"kind": "poisson", "rate": True}}, "valid number"),
        (
            "random",
            {"arrivals": {"kind": "bursts", "rate_on": 1, "mean_on": 0, "mean_off": 1}},
            "greater than 0",
        ),
        (
            "random",
            {"arrivals": {"kind": "diurnal", "rate": 1, "period": 0}},
            "period must be greater",
        ),
        ("random", {"num_requests": 2.0}, "valid integer"),
        ("rag", {"documents": 1, "chunks_per_document": 2, "chunks": 3}, "more than the corpus holds"),
        ("mix", {"clients": [{**specs()["mix"]["clients"][0], "weight": 2.0}]}, "a batch has no rate"),
        ("mix", {"clients": []}, "at least 1 item"),
        ("mix", {"clients": [specs()["mix"]["clients"][0]] * 2}, "two clients are called 'a'"),
        (
            "mix",
            {"clients": [{"name": "a", "client": {"kind": "batch", "num_requests": 3, "vocab_size": 9}}]},
            "set it once, on the mixture",
        ),
        (
            "mix",
            {"clients": [{"name": "a", "client": specs()["mix"]}]},
            "does not match any of the expected tags",
        ),
        ("trace", {"format": "csv"}, "Input should be 'auto', 'mooncake'"),
    ],
)
def test_what_is_refused(kind: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_spec({**specs()[kind], **change})
