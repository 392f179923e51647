"""Every reader: a good file, and every way in which a file can be broken, with the place and the advice."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workloads.builder import salt_id
from workloads.errors import WorkloadError
from workloads.files import read
from workloads.readers import READERS, detect, read_trace
from workloads.readers.options import ReadOptions

Write = Callable[[str, Any], Path]


@pytest.fixture
def put(tmp_path: Path) -> Write:
    """Write a file: text as it is, bytes as they are, a list of objects as JSON lines."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path

    return write


def mooncake(**changes: Any) -> dict[str, Any]:
    return {"timestamp": 27, "input_length": 1000, "output_length": 5, "hash_ids": [3, 9], **changes}


def logical(**changes: Any) -> dict[str, Any]:
    row = {"request_id": "a", "arrival_step": 0, "prompt_token_ids": [1, 2, 3], "output_token_ids": [4]}
    return {**row, "priority": 0, "cache_salt": None, **changes}


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
)

MISTAKES: list[tuple[str, Any, str]] = [
    ("azure", AZURE + "2023-11-16 18:15:47+02:00,7,5\n", r":3:1: TIMESTAMP must be in UTC"),
    (
        "azure",
        AZURE + "9023-11-16 18:15:47,7,5\n",
        r":3:1: TIMESTAMP must be a date and time between 1740 and 2199",
    ),
    ("mooncake", '{"timestamp": ' + "9" * 5000 + "}", r":1:1: not a request: a number with too many digits"),
    ("mooncake", '{"timestamp": 1e400}', r":1:2: timestamp must be at least 0 and finite, got inf"),
    # (format, content, expected message after the file's path)
    ("mooncake", [mooncake(), mooncake(input_length=-5)], r":2:19: input_length must be at least 1, got -5"),
    ("mooncake", [mooncake(), mooncake(output_length=0)], r":2:41: output_length must be at least 1, got 0"),
    ("mooncake", [mooncake(output_length="7")], r":1:41: output_length must be an integer, got '7'"),
    ("mooncake", [mooncake(output_length=True)], r":1:41: output_length must be an integer, got true"),
    ("mooncake", [mooncake(input_length=2**31)], r":1:19: input_length must be at most 2147483647"),
    ("mooncake", [mooncake(timestamp=-1)], r":1:2: timestamp must be at least 0"),
    ("mooncake", [mooncake(timestamp="now")], r":1:2: timestamp must be a number, got 'now'"),
    (
        "mooncake",
        [mooncake(hash_ids=[1])],
        r":1:61: 1 hash_ids for 1000 tokens, but blocks of 512 .* make 2; set hash_b",
    ),
    ("mooncake", [mooncake(hash_ids=[1, -2])], r":1:61: hash_ids must lie between"),
    ("mooncake", [mooncake(hash_ids=[1, 2.5])], r":1:61: hash_ids must be a non-empty list of integers"),
    ("mooncake", [mooncake(hash_ids=[])], r":1:61: hash_ids must be a non-empty list of integers"),
    (
        "mooncake",
        '{"timestamp": 1, "input_length": 5, "output_length": 1}\n',
        r":1:1: hash_ids must be a non-empty",
    ),
    (
        "mooncake",
        '{"input_length": 5, "output_length": 1, "hash_ids": [1]}\n',
        r":1:1: the key 'timestamp' is missing",
    ),
    (
        "mooncake",
        json.dumps(mooncake()) + '\n{"timestamp": 1, "inp',
        r":2:18: not valid JSON: .*one JSON object",
    ),
    (
        "mooncake",
        '{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [1], "input_length": 6}\n',
        r":1:74: the key 'input_length' is given twice; leave one out",
    ),
    (
        "logical",
        '{"request_id": "a", "prompt_token_ids": [1], "output_token_ids": [1], "arrival_step": 0,'
        ' "arrival_step" : 1}\n',
        r":1:90: the key 'arrival_step' is given twice",
    ),
    (
        "vllm",
        '{"prompt_len": 5, "output_len": 1, "more": {"a": 1, "a": 2}}\n',
        r":1:53: the key 'a' is given twice",
    ),
    ("mooncake", json.dumps(mooncake()) + "\n[1, 2]\n", r":2:1: expected a JSON object, got a list"),
    ("mooncake", "[" * 100_000, r":1:1: not a request: brackets nested too deep"),
    (
        "azure",
        "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,3\n",
        r":1:1: the header has no column 'GeneratedTokens'",
    ),
    ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n", r":2:1: the trace has a header and no requests"),
    ("azure", AZURE + "2023-11-16 18:15:47,12\n", r":3:23: 2 values where 3 are needed"),
    ("azure", AZURE + "2023-11-16 18:15:47,x,5\n", r":3:21: ContextTokens must be an integer, got 'x'"),
    ("azure", AZURE + "2023-11-16 18:15:47,7,-5\n", r":3:23: GeneratedTokens must be at least 0, got -5"),
    ("azure", AZURE + "2023-11-16 18:15:47,7,9999999999\n", r":3:23: GeneratedTokens must be at most"),
    ("azure", AZURE + "yesterday,7,5\n", r":3:1: TIMESTAMP must be a date and time .*, got 'yesterday'"),
    ("azure", AZURE + ",7,5\n", r":3:1: TIMESTAMP must be a date and time"),
    (
        "azure",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,0,5\n",
        r": no row has a prompt and an output",
    ),
    (
        "burstgpt",
        BURST + "soon,GPT-4,1,2,3,API log\n",
        r":3:1: Timestamp must be a number of seconds, got 'soon'",
    ),
    (
        "burstgpt",
        BURST + "-4,GPT-4,1,2,3,API log\n",
        r":3:1: Timestamp must be a number of seconds of at least 0",
    ),
    (
        "burstgpt",
        BURST + "nan,GPT-4,1,2,3,API log\n",
        r":3:1: Timestamp must be a number of seconds of at least 0",
    ),
    ("burstgpt", BURST + "4,GPT-4,1.5,2,3,API log\n", r":3:9: Request tokens must be an integer, got '1.5'"),
    (
        "logical",
        [logical(), logical()],
        r":2:2: request_id 'a' is already that of line 1; ids must be unique",
    ),
    ("logical", [logical(request_id=7)], r":1:2: request_id must be a string or null, got 7"),
    ("logical", [logical(request_id="")], r":1:2: request_id must be a non-empty string"),
    ("logical", [logical(arrival_step=-1)], r":1:21: arrival_step must be at least 0, got -1"),
    ("logical", [logical(arrival_step=1.5)], r":1:21: arrival_step must be an integer, got 1.5"),
    (
        "logical",
        [logical(prompt_token_ids=[])],
        r":1:40: prompt_token_ids must be a non-empty list .* got an empty list",
    ),
    ("logical", [logical(prompt_token_ids="hello")], r":1:40: prompt_token_ids must be a non-empty list"),
    ("logical", [logical(output_token_ids=[1, "b"])], r"output_token_ids\[1\] must be an integer, got 'b'"),
    (
        "logical",
        [logical(output_token_ids=[1, -3])],
        r"output_token_ids\[1\] must be a token id of at least 0, got -3",
    ),
    ("logical", [logical(priority=0.5)], r"priority must be an integer, got 0.5"),
    ("logical", [logical(cache_salt=5)], r"cache_salt must be a string or null, got 5"),
    (
        "logical",
        '{"request_id": "a", "arival_step": 0}\n',
        r":1:21: unknown key 'arival_step'; did you mean arrival_step\?",
    ),
    (
        "vllm",
        [{"prompt": "What is a token?", "output_tokens": 5}],
        r":1:2: the prompt is text, .* add prompt_token_ids, or",
    ),
    ("vllm", [{"prompt_len": 5}], r":1:1: no output: give output_token_ids or output_len, or set the option"),
    ("vllm", [{"output_len": 5}], r":1:1: no prompt: give prompt_token_ids or prompt_len"),
    ("vllm", [{"prompt_len": 0, "output_len": 5}], r":1:2: prompt_len must be at least 1, got 0"),
    ("vllm", [{"prompt_len": 5, "output_len": None}], r"no output"),
    (
        "vllm",
        [{"prompt_len": 5, "output_len": 1, "timestamp": 1}, {"prompt_len": 5, "output_len": 1}],
        r":2:1: expected the time as 'timestamp', as on the first line",
    ),
    (
        "vllm",
        [{"prompt_len": 5, "output_len": 1}, {"prompt_len": 5, "output_len": 1, "arrival_s": 1}],
        r":2:36: has a time \('arrival_s'\), but the first line has none",
    ),
    (
        "vllm",
        [{"prompt_len": 5, "output_len": 1, "request_id": "x"}] * 2,
        r":2:36: request_id 'x' is already that of line 1",
    ),
    (
        "vllm",
        [{"prompt_len": 5, "output_len": 1, "request_id": "x"}, {"prompt_len": 5, "output_len": 1}],
        r": 1 of 2 requests have a request_id; give one to all or none",
    ),
    ("vllm", '{"input_lens": [5], "output_lens": [2]}', r": the result has no list of numbers 'start_times'"),
    ("vllm", '{"input_lens": [5], "output_lens": [2, 3], "start_times": [1]}', r"differ in length"),
    (
        "vllm",
        '{"input_lens": [5], "output_lens": [0], "start_times": [1]}',
        r"no request of the result has an output",
    ),
    ("vllm", '{"input_lens": [5], "output_lens"', r"several runs .* or is cut off"),
]


@pytest.mark.parametrize(("name", "content", "message"), MISTAKES)
def test_a_broken_file_gives_one_message_with_its_place(
    put: Write, name: str, content: Any, message: str
) -> None:
    path = put("trace.txt", content)
    with pytest.raises(WorkloadError) as caught:
        read_trace(path, name)
    assert caught.value.file == str(path)
    assert re.match(re.escape(str(path)) + ".*" + message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(READERS))
def test_empty_files_are_refused(put: Write, name: str) -> None:
    for content in ("", "\n \n"):
        with pytest.raises(WorkloadError, match="the file is empty; a trace needs at least one request"):
            read_trace(put("empty.jsonl", content), name)


@pytest.mark.parametrize("name", list(READERS))
def test_files_that_are_not_text_are_refused(put: Write, name: str) -> None:
    with pytest.raises(WorkloadError, match=r"bin:2:3: byte 0xff is not UTF-8 text"):
        read_trace(put("bin", b"ab\ncd\xff\n"), name)


def test_missing_file_names_its_neighbours(put: Write, tmp_path: Path) -> None:
    put("mooncake.jsonl.gz", "x")
    with pytest.raises(
        WorkloadError, match=r"mooncake\.json\.gz: no such file; did you mean mooncake\.jsonl\.gz\?"
    ):
        read_trace(tmp_path / "mooncake.json.gz")
    with pytest.raises(WorkloadError, match=r"no such file; there is no folder .*nowhere either"):
        read_trace(tmp_path / "nowhere" / "x.jsonl")
    with pytest.raises(WorkloadError, match="is a folder"):
        read_trace(tmp_path)


def test_relative_paths_are_looked_for_beside_the_config_first(
    put: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("a.jsonl", [mooncake()])
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.jsonl").write_text(json.dumps(mooncake()) + "\n" + json.dumps(mooncake()) + "\n")
    monkeypatch.chdir(tmp_path / "work")
    assert len(read_trace("a.jsonl", base_dir=tmp_path)) == 1
    assert len(read_trace("a.jsonl", base_dir=tmp_path / "elsewhere")) == 2
    with pytest.raises(
        WorkloadError, match=r"b\.jsonl: no such file \(nor .*b\.jsonl\); did you mean a\.jsonl\?"
    ):
        read_trace("b.jsonl", base_dir=tmp_path)


def test_truncated_and_damaged_gzip(put: Write) -> None:
    packed = gzip.compress((json.dumps(mooncake()) + "\n").encode() * 100)
    with pytest.raises(WorkloadError, match="the gzip file is truncated; fetch or write it again"):
        read_trace(put("t.jsonl.gz", packed[:-12]))
    damaged = bytearray(packed)
    damaged[-6] ^= 0xFF
    with pytest.raises(WorkloadError, match="the gzip file is damaged"):
        read_trace(put("t.jsonl.gz", bytes(damaged)))
    assert len(read_trace(put("t.jsonl.gz", packed))) == 100


def test_gzip_is_recognised_by_content(put: Write) -> None:
    packed = gzip.compress((json.dumps(mooncake()) + "\n").encode())
    assert len(read_trace(put("plain.jsonl", packed))) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mooncake", [mooncake()]),
        ("azure", AZURE),
        ("burstgpt", BURST),
        ("logical", [logical()]),
        ("vllm", [{"prompt_token_ids": [1], "output_len": 2}]),
        ("vllm", [{"prompt": "text", "prompt_len": 3, "output_tokens": 2}]),
        ("vllm", '{"date": "x", "input_lens": [5], "output_lens": [2], "start_times": [9.5]}'),
    ],
)
def test_formats_are_recognised(put: Write, name: str, content: Any) -> None:
    path = put("some.file", content)
    assert detect(read(path)) == name
    assert len(read_trace(path)) == 1


def test_unrecognised_formats(put: Write) -> None:
    with pytest.raises(WorkloadError, match=r":1:1: the format is not recognised .* one of mooncake, azure"):
        read_trace(put("x", '{"a": 1}\n'))
    with pytest.raises(WorkloadError, match="not recognised"):
        read_trace(put("x", "hello,world\n1,2\n"))
    with pytest.raises(WorkloadError, match=r":1:9: not valid JSON"):
        read_trace(put("x", '{"a": 1 "b"}\n'))
    with pytest.raises(WorkloadError, match="unknown trace format 'csv'"):
        read_trace(put("x", AZURE), "csv")


def test_mooncake_prompts_are_made_of_hash_blocks(put: Write) -> None:
    rows = [mooncake(), mooncake(timestamp=28.5, input_length=1024), mooncake(timestamp=30, hash_ids=[3, 4])]
    w = read_trace(put("m.jsonl", rows))
    assert w.arrival.tolist() == [0, 1_500_000, 3_000_000]
    assert w.prompt_len.tolist() == [1000, 1024, 1000]
    assert w.seg_id.tolist() == [3, 9, 3, 9, 3, 4]
    assert w.seg_len.tolist() == [512, 488, 512, 512, 512, 488]
    first, second, third = (w.prompt_tokens(i).tolist() for i in range(3))
    assert second[:1000] == first
    assert third[:512] == first[:512]
    assert third[512] != first[512]
    assert w.request_ids is None
    assert w.source["sha256"]


def test_mooncake_at_another_hash_block_size(put: Write) -> None:
    path = put("m.jsonl", [mooncake(input_length=33, hash_ids=[1, 2, 3])])
    w = read_trace(path, options=ReadOptions(hash_block_size=16))
    assert w.seg_len.tolist() == [16, 16, 1]


def test_requests_out_of_order_are_sorted_stably_with_a_note(put: Write) -> None:
    rows = [mooncake(timestamp=t, output_length=i + 1) for i, t in enumerate([10, 30, 20, 30, 20])]
    w = read_trace(put("m.jsonl", rows))
    assert w.output_len.tolist() == [1, 3, 5, 2, 4]
    assert w.arrival.tolist() == [0, 10_000_000, 10_000_000, 20_000_000, 20_000_000]
    assert w.request_ids == ("r0", "r2", "r4", "r1", "r3")
    assert w.source["notes"] == ["2 of 5 requests are earlier than the one before; sorted by time"]


def test_cutting_and_scaling(put: Write) -> None:
    rows = [mooncake(timestamp=1000 * i) for i in range(10)]
    path = put("m.jsonl", rows)
    w = read_trace(path, options=ReadOptions(max_requests=4, time_scale=0.5))
    assert w.arrival.tolist() == [0, 500_000_000, 1_000_000_000, 1_500_000_000]
    assert w.source["notes"] == ["the first 4 of 10 requests are used, as asked"]
    assert len(read_trace(path, options=ReadOptions(duration_ns=3_000_000_000))) == 3


@pytest.mark.parametrize(
    ("content", "options", "name"),
    [
        (AZURE, {"hash_block_size": 16}, "hash_block_size does not apply to a trace of format azure"),
        (AZURE, {"model": "GPT-4"}, "model does not apply to a trace of format azure"),
        (BURST, {"output_len": 5}, "output_len does not apply to a trace of format burstgpt"),
        ([logical()], {"duration_ns": 5}, "duration does not apply to a trace of format logical"),
        ([mooncake(), mooncake(timestamp=1e12)], {"time_scale": 1e9}, "makes arrivals later than"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    put: Write, content: Any, options: dict[str, Any], name: str
) -> None:
    path = put("x", content)
    with pytest.raises(WorkloadError, match=re.escape(str(path)) + ": .*" + name):
        read_trace(path, options=ReadOptions(**options))


def test_paths_that_cannot_be_looked_at(put: Write, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be read: File name too long"):
        read_trace(tmp_path / ("x" * 300))
    with pytest.raises(WorkloadError, match="no such file"):
        read_trace(put("file", "x") / "below")


def test_azure(put: Write) -> None:
    text = (
        AZURE
        + "2023-11-16 18:15:47.6805901,12,7\r\n\n2023-11-16 18:15:48Z,0,7\n2023-11-16 18:15:49+00:00,5,1"
    )
    w = read_trace(put("a.csv", text))
    assert w.arrival.tolist() == [0, 1_000_000_100, 2_319_410_000]
    assert w.prompt_len.tolist() == [374, 12, 5]
    assert w.output_len.tolist() == [44, 7, 1]
    assert len(set(w.seg_id.tolist() + w.out_seg.tolist())) == 6
    assert w.source["notes"] == ["1 of 4 rows have no output or no prompt (failed); left out"]


def test_burstgpt_leaves_out_failed_rows_and_filters(put: Write) -> None:
    text = BURST + "45,GPT-4,1087,0,1087,API log\n118.5,GPT-4,417,276,693,API log\n"
    path = put("b.csv", text)
    w = read_trace(path)
    assert w.arrival.tolist() == [0, 113_500_000_000]
    assert w.prompt_len.tolist() == [472, 417]
    assert w.source["notes"] == ["1 of 3 rows have no output or no prompt (failed); left out"]
    only = read_trace(path, options=ReadOptions(model="GPT-4"))
    assert only.prompt_len.tolist() == [417]
    assert len(read_trace(path, options=ReadOptions(log_type="Conversation log"))) == 1
    with pytest.raises(WorkloadError, match="no row has Model 'GPT-5'; the file has ChatGPT, GPT-4"):
        read_trace(path, options=ReadOptions(model="GPT-5"))


def test_logical(put: Write) -> None:
    rows = [
        logical(arrival_step=4, cache_salt="tenant-1", priority=-2),
        logical(request_id="b", arrival_step=2, cache_salt="tenant-1", output_token_ids=[9, 8, 7], extra=1),
        logical(request_id="c", arrival_step=2, cache_salt="", encoder_tokens=30),
    ]
    w = read_trace(put("w.jsonl", rows))
    assert w.clock == "logical"
    assert w.arrival.tolist() == [4, 2, 2]  # file order: it decides ties
    assert w.request_ids == ("a", "b", "c")
    assert w.prompt_tokens(1).tolist() == [1, 2, 3]
    assert w.output_tokens(1).tolist() == [9, 8, 7]
    assert w.max_tokens.tolist() == w.output_len.tolist() == [1, 3, 1]
    assert w.salt.tolist() == [salt_id("tenant-1"), salt_id("tenant-1"), 0]
    assert w.priority.tolist() == [-2, 0, 0]
    assert w.encoder_tokens is not None
    assert w.encoder_tokens.tolist() == [-1, -1, 30]
    assert w.vocab_size == 10
    assert w.source["cache_salts"] == {str(salt_id("tenant-1")): "tenant-1"}
    assert w.source["notes"] == ["1 lines have a key 'extra', which is ignored"]


def test_vllm_request_list(put: Write) -> None:
    rows = [
        {
            "prompt_token_ids": [5, 6, 7],
            "output_len": 4,
            "arrival_s": 10.25,
            "request_id": "x",
            "cache_salt": "s",
        },
        {"prompt": [5, 6, 200_000], "output_tokens": 2, "arrival_s": 10, "request_id": "y", "priority": 3}
        | {"encoder_tokens": 1500},
        {
            "prompt": "some text",
            "prompt_len": 9,
            "output_token_ids": [1, 2],
            "arrival_s": 11,
            "request_id": "z",
        },
    ]
    w = read_trace(put("v.jsonl", rows))
    assert w.request_ids == ("y", "x", "z")
    assert w.arrival.tolist() == [0, 250_000_000, 1_000_000_000]
    assert w.prompt_tokens(0).tolist() == [5, 6, 200_000]
    assert w.prompt_tokens(1).tolist() == [5, 6, 7]
    assert w.prompt_len.tolist() == [3, 3, 9]
    assert w.output_tokens(2).tolist() == [1, 2]
    assert w.priority.tolist() == [3, 0, 0]
    assert w.salt.tolist() == [0, salt_id("s"), 0]
    assert w.encoder_tokens is not None
    assert w.encoder_tokens.tolist() == [1500, -1, -1]
    assert w.vocab_size == 200_001


def test_vllm_list_without_times_arrives_at_once(put: Write) -> None:
    rows = [{"prompt_len": 5, "output_tokens": 2}, {"prompt_len": 6, "prompt": "x"}]
    w = read_trace(put("v.jsonl", rows), options=ReadOptions(output_len=11))
    assert w.arrival.tolist() == [0, 0]
    assert w.output_len.tolist() == [2, 11]
    assert "no times" in w.source["notes"][0]


def test_vllm_result_file(put: Write) -> None:
    result = {
        "input_lens": [10, 20, 30],
        "output_lens": [1, 0, 3],
        "start_times": [105.5, 104.0, 105.0],
        "ttfts": [],
    }
    w = read_trace(put("r.json", json.dumps(result, indent=2)))
    assert w.prompt_len.tolist() == [30, 10]
    assert w.arrival.tolist() == [0, 500_000_000]
    assert w.source["notes"][0] == "1 of 3 requests have no output (failed); left out"


def test_public_traces(data_dir: Path) -> None:
    w = read_trace(data_dir / "mooncake_conversation.jsonl.gz")
    assert (len(w), int(w.prompt_len.sum()), int(w.output_len.sum())) == (12_031, 144_793_823, 4_122_048)
    assert len(w.seg_id) == 288_500
    azure = read_trace(data_dir / "azure_llm_2023_conv.csv")
    assert (len(azure), int(azure.prompt_len.sum())) == (19_366, 22_361_870)


def test_conformance_workloads(conformance_dir: Path) -> None:
    files = sorted(conformance_dir.glob("*/workload.jsonl.gz"))
    assert files
    for path in files:
        w = read_trace(path)
        assert w.clock == "logical"
        with gzip.open(path, "rt") as handle:
            rows = [json.loads(line) for line in handle]
        assert len(w) == len(rows)
        for i in (0, len(rows) // 2, len(rows) - 1):
            assert w.prompt_tokens(i).tolist() == rows[i]["prompt_token_ids"]
            assert w.output_tokens(i).tolist() == rows[i]["output_token_ids"]
            assert w.request_id(i) == rows[i]["request_id"]
