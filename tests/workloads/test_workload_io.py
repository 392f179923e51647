"""A workload in a file: what is read is what was written, to the byte; a file is whole or not there."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workloads import readers
from workloads.builder import WorkloadBuilder, salt_id
from workloads.errors import WorkloadError
from workloads.files import write_whole
from workloads.io import SUFFIXES, export_logical, write
from workloads.readers import native, read_or_spool, read_trace
from workloads.readers.options import ReadOptions
from workloads.requests import ARRAY_FIELDS, Workload
from workloads.spool import Spool


def same(a: Workload, b: Workload) -> bool:
    names = (*ARRAY_FIELDS, "encoder_tokens")
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
    rest = ("clock", "closed_loop", "vocab_size", "request_ids", "source")
    return arrays and all(getattr(a, name) == getattr(b, name) for name in rest)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Workloads with every feature: explicit and synthetic pieces, parents, a pool, salts, names."""
    n = draw(st.integers(1, 7))
    closed = draw(st.booleans())
    named = draw(st.booleans())
    encoder = draw(st.booleans())
    builder = WorkloadBuilder(draw(st.integers(50, 2**31 - 1)), closed_loop=closed)
    small = st.integers(1, 30)
    for i in range(n):
        ids, starts, lens = [], [], []
        for _ in range(draw(st.integers(1, 3))):
            if draw(st.booleans()):
                ids.append(draw(st.integers(0, 2**62)))
                starts.append(draw(st.integers(0, 1000)))
                lens.append(draw(small))
            else:
                tokens = draw(st.lists(st.integers(0, 49), min_size=1, max_size=5))
                ids.append(builder.add_tokens(tokens))
                starts.append(0)
                lens.append(len(tokens))
        how = draw(st.sampled_from(["arrival", "parent", "pool"])) if i else "arrival"
        if how == "pool" and not closed:
            how = "arrival"
        output_len = draw(small)
        builder.add(
            ids,
            lens,
            seg_starts=starts,
            output_len=output_len,
            out_seg=draw(st.none() | st.integers(0, 100)),
            arrival=draw(st.integers(0, 2**61)) if how == "arrival" else -1,
            parent=draw(st.integers(0, i - 1)) if how == "parent" else -1,
            think_ns=0 if how == "arrival" else draw(st.integers(0, 2**61)),
            max_tokens=output_len + draw(st.integers(0, 9)),
            priority=draw(st.integers(-(2**31), 2**31 - 1)),
            salt=draw(st.integers(0, 2**62)),
            session=draw(st.integers(-1, 5)),
            request_id=f"{draw(st.text(max_size=4))}/{i}" if named else None,
            encoder_tokens=draw(st.none() | st.integers(0, 2**31 - 1)) if encoder else None,
        )
    return builder.build({"kind": "test", "text": draw(st.text(max_size=5)), "seed": 1})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workload=workloads(), suffix=st.sampled_from(SUFFIXES))
def test_round_trip_is_exact(workload: Workload, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    write(workload, path)
    again = read_trace(path)
    assert same(workload, again)
    assert again.content_hash() == workload.content_hash()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(workload=workloads(), suffix=st.sampled_from(SUFFIXES), chunk=st.integers(1, 4))
def test_what_is_spooled_is_what_was_written(
    workload: Workload, suffix: str, chunk: int, tmp_path: Path
) -> None:
    write(workload, tmp_path / f"w{suffix}")
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        patched.setattr(native, "CHUNK", chunk)
        spool = read_or_spool(tmp_path / f"w{suffix}", "auto", ReadOptions(), None, lambda: Path(folder), 0)
        assert isinstance(spool, Spool)
        assert spool.content_hash() == workload.content_hash()
        assert same(workload, spool.load())


def test_json_lines_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(example(), tmp_path / "w.jsonl.gz")
    monkeypatch.setattr(readers, "read", None)
    found = read_or_spool(tmp_path / "w.jsonl.gz", "auto", ReadOptions(), None, lambda: tmp_path, 1)
    assert isinstance(found, Spool)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"requests":2', '"requests":3', "w.jsonl:1:1: the header says 3 requests, the file has 2"),
        ('"output_len":4', '"output_len":5', "w.jsonl:1:1: the content is not what content_hash"),
        ('"output_len":4', '"output_len":-4', "w.jsonl: "),
        ("[[7,0,20]]", "[[7,0]]", "w.jsonl:3:"),
        ('"arrival":10', '"arival":10', "w.jsonl:3:2: unknown key 'arival'"),
    ],
)
def test_mistakes_are_told_alike_whole_and_spooled(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    write(example(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    (tmp_path / "spool").mkdir()
    for limit in (0, 9):
        with pytest.raises(WorkloadError) as e:
            read_or_spool(path, "auto", ReadOptions(), None, lambda: tmp_path / "spool", limit)
        assert message in str(e.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_workload_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    write(example(), tmp_path / f"a{suffix}")
    write(read_trace(tmp_path / f"a{suffix}"), tmp_path / f"b{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def example() -> Workload:
    builder = WorkloadBuilder(vocab_size=100)
    first = builder.add([7], [20], output_len=4, arrival=10, salt=salt_id("s"))
    builder.add([builder.add_tokens([1, 2, 3])], [3], output_len=2, parent=first, think_ns=40_000_000)
    return builder.build({"kind": "test", "cache_salts": {str(salt_id("s")): "s"}})


def test_lines_are_for_people(tmp_path: Path) -> None:
    write(example(), tmp_path / "w.jsonl")
    header, tokens, first, second = map(json.loads, (tmp_path / "w.jsonl").read_text().splitlines())
    assert header["kvpool_workload"] == 1
    assert header["content_hash"] == example().content_hash()
    assert tokens == {"tokens": [1, 2, 3]}
    assert first["pieces"] == [[7, 0, 20]]
    assert first["arrival"] == 10
    assert second["pieces"] == [[-1, 0, 3]]
    assert second["parent"] == 0
    assert "arrival" not in second


def edit(path: Path, line: int, **changes: Any) -> None:
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    for key, value in changes.items():
        if value is None:
            del rows[line][key]
        else:
            rows[line][key] = value
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("line", "changes", "message"),
    [
        (2, {"arrival": 11}, r":1:1: the content is not what content_hash of the header says"),
        (2, {"arrival": "x"}, r":3:\d+: arrival must be an integer"),
        (2, {"arrival": 2**63}, r":3:\d+: arrival must be an integer"),
        (2, {"colour": 1}, r":3:\d+: unknown key 'colour'"),
        (2, {"pieces": []}, r":3:\d+: pieces must be a non-empty list"),
        (2, {"pieces": [[1, 2]]}, r":3:\d+: every piece must be three integers"),
        (2, {"pieces": [[1, 2, 2.5]]}, r":3:\d+: every piece must be three integers"),
        (2, {"output_len": None}, r":3:1: output_len must be an integer"),
        (2, {"output_len": 0, "max_tokens": 1}, r"request 0 \('r0'\): output_len must be at least 1"),
        (2, {"id": "x"}, r": 1 of 2 requests have an id"),
        (2, {"id": 5}, r":3:\d+: id must be a string"),
        (3, {"parent": 1}, r"request 1 .*: the parent must be an earlier request"),
        (1, {"tokens": [1, "b"]}, r":2:2: tokens must be a list of integers"),
        (0, {"requests": 3}, r":1:1: the header says 3 requests, the file has 2; is it cut off\?"),
        (0, {"kvpool_workload": 9}, r":1:2: workload version 9; this release reads 1"),
        (0, {"kvpool_workload": None}, r":1:1: not a workload file"),
        (0, {"vocab_size": "many"}, r":1:\d+: vocab_size of the header must be of type int"),
    ],
)
def test_edited_files(tmp_path: Path, line: int, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "w.jsonl"
    write(example(), path)
    edit(path, line, **changes)
    with pytest.raises(WorkloadError, match=re.escape(str(path)) + ".*" + message):
        read_trace(path, "native")


def test_an_edit_on_purpose_is_read_without_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    write(example(), path)
    edit(path, 2, arrival=11)
    edit(path, 0, content_hash=None)
    assert read_trace(path).arrival[0] == 11


def test_broken_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "w.parquet"
    write(example(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WorkloadError, match="not a readable Parquet file"):
        read_trace(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(WorkloadError, match="not a workload file: its metadata has no"):
        read_trace(path)
    write(example(), path)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["salt"]), path)
    with pytest.raises(WorkloadError, match="the column 'salt' is missing"):
        read_trace(path)


def test_a_workload_file_takes_no_options(tmp_path: Path) -> None:
    write(example(), tmp_path / "w.jsonl")
    with pytest.raises(
        WorkloadError, match="the option time_scale does not apply to a trace of format native"
    ):
        read_trace(tmp_path / "w.jsonl", options=ReadOptions(time_scale=2.0))


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"written as one of \.jsonl, \.jsonl\.gz, \.parquet"):
        write(example(), tmp_path / "w.csv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_nothing_behind(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkloadError, match="cannot be written: No space left on device; nothing was"):
        write(example(), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "w.jsonl", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be written: No such file or directory"):
        write(example(), tmp_path / "no" / "w.jsonl")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkloadError, match="cannot be written: Not a directory"):
        write(example(), tmp_path / "file" / "w.jsonl")


def test_logical_round_trip(tmp_path: Path, conformance_dir: Path) -> None:
    original = conformance_dir / "duplicates" / "workload.jsonl.gz"
    workload = read_trace(original)
    export_logical(workload, tmp_path / "w.jsonl.gz")
    with gzip.open(original, "rt") as a, gzip.open(tmp_path / "w.jsonl.gz", "rt") as b:
        assert [json.loads(line) for line in a] == [json.loads(line) for line in b]
    assert read_trace(tmp_path / "w.jsonl.gz").content_hash() == workload.content_hash()


def test_logical_export_of_a_workload_in_time(tmp_path: Path) -> None:
    workload = example()
    notes = export_logical(workload, tmp_path / "w.jsonl", step_ns=20_000_000)
    rows = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    assert [row["arrival_step"] for row in rows] == [0, 0 + 4 + 1 + 2]
    assert rows[0]["prompt_token_ids"] == workload.prompt_tokens(0).tolist()
    assert rows[1]["output_token_ids"] == workload.output_tokens(1).tolist()
    assert rows[0]["cache_salt"] == "s"
    assert notes == ["requests that follow others were given nominal steps (one token a step)"]
    again = read_trace(tmp_path / "w.jsonl")
    assert again.salt.tolist() == workload.salt.tolist()
    assert again.prompt_tokens(0).tolist() == workload.prompt_tokens(0).tolist()


def test_what_logical_export_refuses(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="say how long a step is"):
        export_logical(example(), tmp_path / "w.jsonl")
    with pytest.raises(WorkloadError, match=r"written as \.jsonl or \.jsonl\.gz"):
        export_logical(example(), tmp_path / "w.parquet", 1)
    builder = WorkloadBuilder(10, closed_loop=True)
    builder.add([1], [2], output_len=1, arrival=0)
    builder.add([2], [2], output_len=1)
    with pytest.raises(WorkloadError, match="a closed-loop pool has no arrival steps"):
        export_logical(builder.build(), tmp_path / "w.jsonl", 1)
