"""`validation record`: its files, its messages about bad input, its exit codes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sim.errors import InputError
from validation import steplog
from validation.cli import main
from validation.logical import LogicalRequest, dump_requests, read_requests

LINE = {"request_id": "a", "arrival_step": 0, "prompt_token_ids": [1, 2, 3], "output_token_ids": [4, 5]}


def record(
    folder: Path, target: str, config: dict[str, Any], *lines: dict[str, Any], out: str = "log.parquet"
) -> Result:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "workload.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ["--engine", str(folder / "config.json"), "--workload", str(folder / "workload.jsonl")]
    return CliRunner().invoke(main, ["record", "--target", target, *files, "--out", str(folder / out)])


@pytest.mark.parametrize("target", ["sim", "reference"])
@pytest.mark.parametrize("out", ["log.parquet", "log.jsonl.gz"])
def test_a_log_of_one_request(tmp_path: Path, target: str, out: str) -> None:
    done = record(tmp_path, target, {"block_size": 2, "num_gpu_blocks": 8}, LINE, out=out)
    assert done.exit_code == 0, done.output
    log = steplog.read(tmp_path / out)
    assert log["phase"] == ["scheduled", "updated"] * 2
    assert log["num_scheduled_tokens"] == [3, 3, 1, 1]
    assert log["finished"] == [[], [], [], ["a"]]
    assert log["num_free_blocks"] == [5, 5, 5, 7]


@pytest.mark.parametrize("target", ["sim", "reference"])
def test_a_request_that_never_fits_ends_the_log_with_exit_code_3(tmp_path: Path, target: str) -> None:
    done = record(tmp_path, target, {"block_size": 2, "num_gpu_blocks": 2}, LINE)
    assert done.exit_code == 3
    assert "stuck" in done.output
    assert "never be admitted" in done.output
    assert set(steplog.read(tmp_path / "log.parquet")["num_scheduled_reqs"]) <= {0}


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
@pytest.mark.parametrize("target", ["scheduler", "engine"])
def test_without_vllm_there_is_one_message(tmp_path: Path, target: str) -> None:
    done = record(tmp_path, target, {"block_size": 32}, LINE)
    assert done.exit_code == 2
    assert "vLLM can't be imported here" in done.output
    assert "make validate" in done.output
    assert not (tmp_path / "log.parquet").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"block_size": 16}, "multiple of 32"),
        ({"block_size": 32, "async_scheduling": True}, "async_scheduling: vLLM has none on a CPU"),
        ({"block_size": 32, "idle_steps": "run"}, "idle_steps"),
        ({"block_size": 32, "kv_cache_groups": [{"type": "mamba"}]}, "kv_cache_groups"),
    ],
)
def test_what_an_engine_cannot_do(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    done = record(tmp_path, "engine", config, LINE)
    assert done.exit_code == 2
    assert message in done.output


def test_an_unknown_engine_key_has_its_place(tmp_path: Path) -> None:
    done = record(tmp_path, "sim", {"blok_size": 16}, LINE)
    assert done.exit_code == 2
    assert "config.json:1" in done.output
    assert "block_size" in done.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_id": ""}, "request_id must be"),
        ({"arrival_step": -1}, "arrival_step must be an integer >= 0"),
        ({"arrival_step": True}, "arrival_step must be an integer"),
        ({"prompt_token_ids": []}, "prompt_token_ids must be"),
        ({"output_token_ids": [1.5]}, "output_token_ids must be"),
        ({"priority": "high"}, "priority must be"),
        ({"cache_salt": ""}, "cache_salt must be"),
        ({"max_tokens": 1}, "max_tokens must be an integer >= 2"),
        ({"prioritty": 1}, "did you mean 'priority'"),
    ],
)
def test_a_bad_workload_line_has_its_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "workload.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, "request_id": "b", **change}) + "\n")
    with pytest.raises(InputError) as caught:
        read_requests(path)
    assert message in str(caught.value)
    assert "workload.jsonl:2" in str(caught.value)


def test_files_that_hold_no_workload(tmp_path: Path) -> None:
    path = tmp_path / "workload.jsonl"
    for text, message in (
        ("", "no requests"),
        ("{", "1:2: not JSON"),
        ("[]", "expected a JSON object"),
        ('{"priority": 1, "priority": 2}', "workload.jsonl:1: the key 'priority' is given twice"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_requests(path)
    path.write_text((json.dumps(LINE) + "\n") * 2)
    with pytest.raises(InputError, match="is also in line 1"):
        read_requests(path)
    with pytest.raises(InputError, match="can't read"):
        read_requests(tmp_path / "none.jsonl")


def test_a_workload_round_trips(tmp_path: Path) -> None:
    requests = [
        LogicalRequest("a", 0, (1, 2), (3,)),
        LogicalRequest("b", 4, (1,), (3, 4), priority=-2, cache_salt="s", max_tokens=9),
    ]
    (tmp_path / "w.jsonl").write_bytes(dump_requests(requests))
    assert read_requests(tmp_path / "w.jsonl") == requests
