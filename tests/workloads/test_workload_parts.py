"""A trace that is read part by part, and spooled, is the trace that is read whole."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workloads import readers
from workloads.errors import WorkloadError
from workloads.readers import read_or_spool, read_trace
from workloads.readers.options import ReadOptions
from workloads.spool import Spool


def mooncake(rng: random.Random, times: list[int]) -> str:
    rows = []
    for time in times:
        length = rng.randint(1, 50)
        ids = [rng.randint(0, 9) for _ in range(-(-length // 16))]
        row = {"timestamp": time, "input_length": length, "output_length": rng.randint(1, 9), "hash_ids": ids}
        rows.append(json.dumps(row))
        if rng.random() < 0.1:
            rows.append("")
    return "\n".join(rows) + rng.choice(["", "\n", "\r\n"])


def azure(rng: random.Random, times: list[int]) -> str:
    rows = [
        f"2023-11-16 18:{t // 60:02}:{t % 60:02}.5,{rng.randint(1, 50)},{rng.choice([0, 3, 4])}"
        for t in times
    ]
    return "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join([*rows, "2023-11-16 19:59:59,7,7\n"])


def burstgpt(rng: random.Random, times: list[int]) -> str:
    rows = [
        f"{t},{rng.choice(['A', 'B'])},{rng.randint(1, 9)},{rng.choice([0, 2, 3])},9,{rng.choice('XY')}"
        for t in times
    ]
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    return "\n".join([head, *rows, "999,A,5,5,10,X"])


FORMATS: dict[str, Callable[[random.Random, list[int]], str]] = {
    "mooncake": mooncake,
    "azure": azure,
    "burstgpt": burstgpt,
}


def outcome(read: Callable[[], object]) -> object:
    """What a reader gives, or the message of its error."""
    try:
        return read()
    except WorkloadError as error:
        return str(error)


@pytest.mark.parametrize("name", list(FORMATS))
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_give_the_whole(name: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    times = [rng.randint(0, 900) for _ in range(rng.randint(1, 30))]
    if rng.random() < 0.7:
        times.sort()
    data = FORMATS[name](rng, times).encode()
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(data) if rng.random() < 0.3 else data)
    options = ReadOptions(
        hash_block_size=16 if name == "mooncake" else 512,
        time_scale=rng.choice([1.0, 0.37]),
        max_requests=rng.choice([None, None, 3, 12]),
        duration_ns=rng.choice([None, None, 400 * 10**9, 100 * 10**6]),
        model=rng.choice([None, "A", "C"]) if name == "burstgpt" else None,
        log_type=rng.choice([None, "X"]) if name == "burstgpt" else None,
    )
    limit = rng.choice([0, 5, 10, 100])
    folder = tmp_path / "spool"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("mooncake", "tables"):
            patch.setattr(f"workloads.readers.{module}.PART", rng.choice([1, 3, 8]))
        given_name = rng.choice(["auto", name])
        got = outcome(lambda: read_or_spool(path, given_name, options, None, lambda: folder, limit))
    expected = outcome(lambda: read_trace(path, name, options))
    if isinstance(expected, str):
        assert got == expected
        return
    assert isinstance(got, Spool) == (len(expected) > limit)
    assert got.content_hash() == expected.content_hash()
    assert got.source == expected.source
    if isinstance(got, Spool):
        assert got.load().content_hash() == expected.content_hash()


def test_a_sorted_trace_is_never_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(mooncake(random.Random(1), list(range(100))))
    monkeypatch.setattr(readers, "read", lambda *_: pytest.fail("the file was read whole"))
    monkeypatch.setattr("workloads.readers.mooncake.PART", 7)
    spool = read_or_spool(path, "auto", ReadOptions(hash_block_size=16), None, lambda: tmp_path, 20)
    assert isinstance(spool, Spool)
    assert len(spool) == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "the file is empty; a trace needs at least one request"),
        (
            b'{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [1]}\n{"t\xff',
            ":2:4: byte 0xff",
        ),
        (b'{"timestamp": 1}\n', r":1:1: the key 'output_length' is missing|:1:1: the key 'input_length'"),
        (gzip.compress(b'{"hash_ids": 1}\n' * 50)[:-9], "the gzip file is truncated|:1:1: the key"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    with pytest.raises(WorkloadError, match=message) as caught:
        read_or_spool(path, "mooncake", ReadOptions(), None, lambda: tmp_path, 0)
    assert caught.value.file == str(path)
