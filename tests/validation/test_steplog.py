"""The step log: its schema, files, and damaged input."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sim.errors import InputError
from tests.validation.steplog_samples import small_log
from validation import steplog

KEYS = b'{"step": 1, "phase": "updated", "batch_step": 1}\n'
CONFORMANCE = Path(__file__).resolve().parents[3] / "shared" / "conformance"


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl", "log.jsonl.gz"])
def test_round_trip_and_same_bytes(tmp_path: Path, name: str) -> None:
    log = small_log()
    steplog.write(tmp_path / name, log)
    assert steplog.read(tmp_path / name) == log
    first = (tmp_path / name).read_bytes()
    steplog.write(tmp_path / name, steplog.to_table(log))
    assert (tmp_path / name).read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_empty_log_round_trips(tmp_path: Path) -> None:
    for name in ("log.parquet", "log.jsonl.gz"):
        steplog.write(tmp_path / name, steplog.empty_log())
        assert steplog.num_rows(steplog.read(tmp_path / name)) == 0


@pytest.mark.skipif(not CONFORMANCE.is_dir(), reason="no conformance recordings beside this checkout")
def test_schema_is_that_of_the_conformance_recordings(tmp_path: Path) -> None:
    for recording in sorted(CONFORMANCE.glob("*/steps.parquet")):
        assert pq.read_schema(recording).equals(steplog.schema()), recording
    steplog.write(tmp_path / "log.parquet", small_log())
    assert pq.read_schema(tmp_path / "log.parquet").equals(steplog.schema())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.txt", b"", "ends in .parquet"),
        ("log.parquet", b"PAR1 nonsense", "not a readable Parquet file"),
        ("log.jsonl", b'{"step": 1}\n', "no column phase"),
        ("log.jsonl", KEYS + b"[]\n", "log.jsonl:2: expected a JSON object"),
        ("log.jsonl", KEYS + b'{"step": }\n', "log.jsonl:2:10: not JSON"),
        ("log.jsonl", KEYS + b'{"step": 1}\n', "log.jsonl:2: no key 'phase'"),
        ("log.jsonl.gz", b"not gzip", "damaged file"),
        ("log.jsonl.gz", gzip.compress(b'{"step": 1}\n' * 100)[:-12], "damaged file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        steplog.read(path)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_file_and_an_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't read"):
        steplog.read(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="can't write"):
        steplog.write(tmp_path / "none" / "log.parquet", small_log())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = steplog.write(tmp_path / "log.parquet", small_log())
    before = path.read_bytes()
    broken = small_log()
    broken["sched_crc"] = [-1] * 4
    with pytest.raises(OverflowError):
        steplog.write(path, broken)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["log.parquet"]
