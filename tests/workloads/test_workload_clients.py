"""Each client does what its description says; the same seed gives the same bytes, whoever else is there."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workloads.clients.code import Rope
from workloads.errors import WorkloadError
from workloads.generate import build
from workloads.io import write
from workloads.requests import Workload
from workloads.spec import parse_spec

ROOT = Path(__file__).resolve().parents[2]
POISSON = {"kind": "poisson", "rate": 5.0}


def make(seed: int = 3, **section: Any) -> Workload:
    return build(parse_spec(section), seed)


KINDS: dict[str, dict[str, Any]] = {
    "chat": {"arrivals": POISSON, "num_sessions": 40, "personas": 3},
    "agents": {"arrivals": POISSON, "num_sessions": 20},
    "rag": {"arrivals": POISSON, "num_requests": 60, "documents": 50},
    "code": {"arrivals": POISSON, "num_sessions": 10, "suffix_len": 60},
    "batch": {"num_requests": 50, "few_shot_len": 100},
    "sampling": {"arrivals": POISSON, "num_requests": 20},
    "random": {"arrivals": POISSON, "num_requests": 60, "prefix_len": 30},
}


def prompts(w: Workload) -> list[list[int]]:
    return [w.prompt_tokens(i).tolist() for i in range(len(w))]


def starts_with(long: list[int], short: list[int]) -> bool:
    return long[: len(short)] == short


@pytest.mark.parametrize("kind", list(KINDS))
def test_same_seed_same_bytes(kind: str) -> None:
    a, b, c = (make(seed, kind=kind, **KINDS[kind]) for seed in (3, 3, 4))
    assert a.content_hash() == b.content_hash() != c.content_hash()
    assert a.source == b.source
    assert json.loads(json.dumps(a.source)) == a.source
    assert a.source["seed"] == 3


def test_same_bytes_in_other_processes() -> None:
    program = (
        "import sys, json; from workloads.generate import build; from workloads.spec import parse_spec\n"
        "for kind, body in json.loads(sys.argv[1]).items():\n"
        "    print(build(parse_spec({'kind': kind, **body}), 3).content_hash())\n"
    )
    expected = [make(kind=kind, **body).content_hash() for kind, body in KINDS.items()]
    for hash_seed in ("0", "1234"):
        run = subprocess.run(
            [sys.executable, "-c", program, json.dumps(KINDS)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split() == expected


@pytest.mark.parametrize("kind", list(KINDS))
def test_followers_come_after_their_parents_in_nominal_order(kind: str) -> None:
    w = make(kind=kind, **KINDS[kind])
    own = w.arrival[w.arrival >= 0]
    assert np.all(np.diff(own) >= 0)
    assert np.all(w.parent < np.arange(len(w)))


def test_chat_prompts_contain_the_whole_conversation() -> None:
    w = make(kind="chat", **KINDS["chat"], think_time="5s", max_turns=6)
    texts = prompts(w)
    followers = np.flatnonzero(w.parent >= 0)
    assert len(followers) > 50
    for i in followers.tolist():
        parent = int(w.parent[i])
        before = texts[parent] + w.output_tokens(parent).tolist()
        assert starts_with(texts[i], before)
        assert len(texts[i]) > len(before)
        assert w.session[i] == w.session[parent]
        assert w.think_ns[i] == 5_000_000_000
        assert w.arrival[i] == -1
    assert len(np.unique(w.session)) == 40
    assert np.bincount(w.session).max() <= 6
    first = [i for i in range(len(w)) if w.parent[i] < 0]
    assert len({tuple(texts[i][:200]) for i in first}) == 3  # personas
    assert len({tuple(texts[i]) for i in first}) == len(first)


def test_chat_sessions_end_at_max_context() -> None:
    w = make(kind="chat", **{**KINDS["chat"], "num_sessions": 200}, max_context=700)
    assert (w.prompt_len + w.output_len).max() <= 700
    assert "sessions sent nothing" in w.source["notes"][0]
    with pytest.raises(WorkloadError, match="no request comes out"):
        make(kind="chat", **KINDS["chat"], max_context=100)


def test_agents_share_their_prefix_and_append_results() -> None:
    w = make(kind="agents", **KINDS["agents"], agents=2, prefix_len=500, result_len=40, tool_latency="1s")
    texts = prompts(w)
    assert len({tuple(text[:500]) for text in texts}) == 2
    for i in np.flatnonzero(w.parent >= 0).tolist():
        parent = int(w.parent[i])
        before = texts[parent] + w.output_tokens(parent).tolist()
        assert starts_with(texts[i], before)
        assert len(texts[i]) == len(before) + 40
        assert w.think_ns[i] == 1_000_000_000


def test_rag_draws_different_chunks_of_popular_documents() -> None:
    body = {**KINDS["rag"], "num_requests": 400, "chunks": 4, "chunk_len": 20, "chunks_per_document": 3}
    w = make(kind="rag", **body, zipf=1.3, system_len=50)
    assert np.all(np.diff(w.seg_ptr) == 6)
    pieces = w.seg_id.reshape(-1, 6)
    assert len(np.unique(pieces[:, 0])) == 1
    assert len(np.unique(pieces[:, 5])) == 400
    assert all(len(set(row)) == 4 for row in pieces[:, 1:5].tolist())
    documents = (pieces[:, 1:5] - pieces[:, 1:5].min()) // 3
    counts = np.bincount(documents.ravel(), minlength=50)
    assert counts[0] > counts[5] > counts[40:].mean()
    ordered = make(kind="rag", **body, zipf=1.3, system_len=50, order="document")
    chunks = ordered.seg_id.reshape(-1, 6)[:, 1:5]
    assert np.all(np.diff(chunks, axis=1) > 0)
    assert np.array_equal(np.sort(pieces[:, 1:5], axis=1), chunks)


def test_rag_ends_when_one_document_holds_all_popularity() -> None:
    w = make(
        kind="rag", arrivals=POISSON, num_requests=3, documents=4, chunks_per_document=1, zipf=400.0, chunks=4
    )
    assert all(len(set(row)) == 4 for row in w.seg_id.reshape(3, 6)[:, 1:5].tolist())


def test_code_prompts_share_a_prefix_and_diverge() -> None:
    w = make(kind="code", **{**KINDS["code"], "suffix_len": 0}, repositories=2, context_len=300)
    texts = prompts(w)
    assert len({tuple(text[:300]) for text in texts}) == 2
    common = []
    for i in np.flatnonzero(w.parent >= 0).tolist():
        a, b = texts[int(w.parent[i])], texts[i]
        same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert same >= 300
        common.append(same / len(a))
    assert np.mean(np.array(common) == 1.0) > 0.5  # the cursor went on
    assert np.mean(np.array(common) < 0.99) > 0.03  # it jumped


def test_code_keeps_accepted_completions() -> None:
    w = make(kind="code", arrivals=POISSON, num_sessions=1, completions=8.0, accept=1.0, jump=0.0)
    texts = prompts(w)
    for i in range(1, len(w)):
        assert starts_with(texts[i], texts[i - 1] + w.output_tokens(i - 1).tolist())


def test_rope_against_a_plain_list() -> None:
    rng = np.random.default_rng(5)
    rope, plain = Rope(), []
    for segment in range(200):
        at, length = int(rng.integers(0, len(plain) + 1)), int(rng.integers(1, 9))
        rope.insert(at, segment, length)
        plain[at:at] = [(segment, k) for k in range(length)]
        begin, end = sorted(rng.integers(0, len(plain) + 1, 2).tolist())
        if begin < end:
            ids, starts, lens = rope.slice(begin, end)
            flat = [(s, start + k) for s, start, n in zip(ids, starts, lens, strict=True) for k in range(n)]
            assert flat == plain[begin:end]
    assert rope.total == len(plain) == sum(rope.lens)


def test_batch_waves_and_few_shot_prefixes() -> None:
    w = make(
        kind="batch",
        num_requests=10,
        waves=3,
        wave_interval="1min",
        few_shot_variants=2,
        few_shot_len=64,
        prompt_len=9,
    )
    assert (w.arrival / 60e9).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    texts = prompts(w)
    assert texts[0][:64] == texts[2][:64] != texts[1][:64]
    assert len({tuple(t) for t in texts}) == 10
    assert make(kind="batch", num_requests=4).arrival.tolist() == [0] * 4


def test_sampling_sends_the_same_prompt_n_times_at_once() -> None:
    w = make(kind="sampling", **KINDS["sampling"], n=5, system_len=20)
    assert len(w) == 100
    texts = prompts(w)
    for k in range(0, 100, 5):
        assert len({tuple(text) for text in texts[k : k + 5]}) == 1
        assert len(set(w.arrival[k : k + 5].tolist())) == 1
        assert len(set(w.out_seg[k : k + 5].tolist())) == 5
    assert len({tuple(text) for text in texts}) == 20
    assert len({tuple(text[:20]) for text in texts}) == 1


def test_random_closed_loop_is_a_pool() -> None:
    closed = {"kind": "closed_loop", "clients": 8, "think_time": "2s"}
    w = make(kind="random", arrivals=closed, num_requests=30, prompt_len=100, output_len=9)
    assert w.closed_loop
    assert w.arrival.tolist() == [0] * 8 + [-1] * 22
    assert np.all(w.parent == -1)
    assert w.think_ns.tolist() == [0] * 8 + [2_000_000_000] * 22
    few = make(kind="random", arrivals=closed, num_requests=5)
    assert not few.closed_loop
    assert few.arrival.tolist() == [0] * 5


@pytest.mark.parametrize("kind", ["random", "rag", "sampling"])
def test_closed_loop_per_client_is_chains(kind: str) -> None:
    arrivals = {"kind": "closed_loop", "clients": 4, "think_time": "1s", "assignment": "per_client"}
    w = make(kind=kind, **{**KINDS[kind], "arrivals": arrivals, "num_requests": 20})
    n = 4 if kind == "sampling" else 1
    assert not w.closed_loop
    assert int((w.arrival == 0).sum()) == 4 * n
    followers = w.parent[w.parent >= 0]
    assert len(followers) == 16 * n
    assert len(np.unique(followers)) == 16
    if kind == "sampling":  # the client waits for the longest of its samples
        for parent in np.unique(followers):
            group = slice(parent // n * n, parent // n * n + n)
            assert w.output_len[parent] == w.output_len[group].max()


def test_closed_loop_sessions_follow_each_other() -> None:
    closed = {"kind": "closed_loop", "clients": 3, "think_time": "7s"}
    w = make(kind="chat", arrivals=closed, num_sessions=12, think_time="1s")
    assert int((w.arrival == 0).sum()) == 3
    changes = [i for i in range(len(w)) if w.parent[i] >= 0 and w.session[i] != w.session[w.parent[i]]]
    assert len(changes) == 9
    assert set(w.think_ns[changes].tolist()) == {7_000_000_000}


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in {"batch"}])
def test_duration_ends_the_arrivals(kind: str) -> None:
    body = {k: v for k, v in KINDS[kind].items() if not k.startswith("num_")}
    w = make(kind=kind, **body, duration="4s")
    own = w.arrival[w.arrival >= 0]
    assert 5 <= len(np.unique(own)) <= 45
    assert own.max() < 4_000_000_000


def test_cap_priority_salt_and_vocabulary() -> None:
    w = make(kind="chat", **KINDS["chat"], max_tokens=200, priority=4, cache_salt="tenant", vocab_size=500)
    assert w.output_len.max() == 200
    assert set(w.max_tokens.tolist()) == {200}
    assert (w.output_len < 200).any()
    assert set(w.priority.tolist()) == {4}
    assert len(set(w.salt.tolist())) == 1
    assert w.source["cache_salts"] == {str(w.salt[0]): "tenant"}
    assert max(map(max, prompts(w))) < 500


def test_joint_lengths(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("in,out\n10,1\n20,2\n")
    spec = parse_spec(
        {
            "kind": "random",
            "arrivals": POISSON,
            "num_requests": 30,
            "lengths": {"path": "l.csv", "prompt_column": "in", "output_column": "out"},
        }
    )
    w = build(spec, 1, base_dir=tmp_path)
    assert np.array_equal(w.prompt_len, 10 * w.output_len)
    with pytest.raises(WorkloadError, match="no such file"):
        build(spec, 1)


def mix(*names: str, **changes: Any) -> Workload:
    parts = [
        {"name": name, "client": {"kind": name.split("-", maxsplit=1)[0], **KINDS[name.split("-")[0]]}}
        for name in names
    ]
    for name, change in changes.items():
        next(part for part in parts if part["name"] == name).update(change)
    return make(kind="mix", clients=parts)


def requests_of(w: Workload, name: str) -> list[tuple[Any, ...]]:
    """Everything about the requests of one client but their places in the workload."""
    assert w.request_ids is not None
    rows = []
    for i, request_id in enumerate(w.request_ids):
        if request_id.rsplit("-", 1)[0] == name:
            parent = w.request_ids[w.parent[i]] if w.parent[i] >= 0 else None
            rows.append(
                (
                    request_id,
                    parent,
                    int(w.arrival[i]),
                    int(w.think_ns[i]),
                    tuple(w.prompt_tokens(i).tolist()),
                    tuple(w.output_tokens(i).tolist()),
                    int(w.max_tokens[i]),
                )
            )
    return rows


def test_adding_a_client_leaves_the_others_unchanged() -> None:
    alone = mix("chat", "random")
    more = mix("rag", "random", "agents", "chat", "code", "batch", "sampling")
    for name in ("chat", "random"):
        assert requests_of(alone, name) == requests_of(more, name)
        assert requests_of(alone, name)
    own = make(kind="chat", **KINDS["chat"])
    assert [row[4] for row in requests_of(alone, "chat")] == [tuple(p) for p in prompts(own)]


def test_two_clients_of_a_kind_share_nothing() -> None:
    w = mix("chat-a", "chat-b")
    first = {row[4][:100] for row in requests_of(w, "chat-a")}
    second = {row[4][:100] for row in requests_of(w, "chat-b")}
    assert not first & second


def test_weight_and_start() -> None:
    w = mix("chat", "random", random={"weight": 4.0, "start": "1min"})
    times = np.array([row[2] for row in requests_of(w, "random")]) / 1e9 - 60
    assert times.min() >= 0
    assert len(times) / times[-1] == pytest.approx(20, rel=0.4)


def test_a_trace_in_a_mixture(tmp_path: Path) -> None:
    chat = make(kind="chat", **KINDS["chat"])
    write(chat, tmp_path / "chat.jsonl")
    rows = [{"prompt_token_ids": [5, 6, 7, i], "output_len": 3, "arrival_s": i} for i in range(5)]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    traces = [
        {"name": name, "start": "2s", "client": {"kind": "trace", "path": str(tmp_path / file)}}
        for name, file in (("old", "chat.jsonl"), ("listed", "v.jsonl"))
    ]
    w = make(
        kind="mix", clients=[{"name": "random", "client": {"kind": "random", **KINDS["random"]}}, *traces]
    )
    old = requests_of(w, "old")
    assert len(old) == len(chat)
    assert [len(row[4]) for row in old] == chat.prompt_len.tolist()
    assert [row[2] for row in old if row[2] >= 0] == (
        chat.arrival[chat.arrival >= 0] + 2_000_000_000
    ).tolist()
    by_id = {row[0]: row for row in old}
    for row in old:
        if row[1] is not None:
            assert starts_with(list(row[4]), list(by_id[row[1]][4] + by_id[row[1]][5]))
    assert [row[4] for row in requests_of(w, "listed")] == [(5, 6, 7, i) for i in range(5)]
    assert requests_of(w, "random") == requests_of(mix("random"), "random")


def test_traces_that_cannot_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text(
        '{"request_id": "a", "arrival_step": 0, "prompt_token_ids": [1], "output_token_ids": [2]}\n'
    )
    closed = make(kind="random", arrivals={"kind": "closed_loop", "clients": 2}, num_requests=5)
    write(closed, tmp_path / "c.jsonl")
    (tmp_path / "t.jsonl").write_text('{"prompt_token_ids": [900000], "output_len": 2}\n')
    for file, message in (
        ("l.jsonl", "a logical-time workload cannot be part of a mixture"),
        ("c.jsonl", "closed-loop pool cannot be part of a mixture"),
        ("t.jsonl", "set vocab_size of the mixture to 900001 or more"),
    ):
        with pytest.raises(WorkloadError, match=message):
            make(
                kind="mix", clients=[{"name": "t", "client": {"kind": "trace", "path": str(tmp_path / file)}}]
            )


def test_a_trace_alone_is_the_trace(tmp_path: Path) -> None:
    chat = make(kind="chat", **KINDS["chat"])
    write(chat, tmp_path / "w.parquet")
    again = make(kind="trace", path=str(tmp_path / "w.parquet"))
    assert again.content_hash() == chat.content_hash()
    assert again.source["spec"]["path"] == str(tmp_path / "w.parquet")
    assert dataclasses.replace(again, source={}).content_hash() == chat.content_hash()


def test_runaway_traffic_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workloads.clients.base.MAX_REQUESTS", 100)
    with pytest.raises(WorkloadError, match="random: more than 100 requests; lower the rate or the duration"):
        make(kind="random", arrivals={"kind": "poisson", "rate": 15}, duration="10s")
    # what can only end there is refused before it begins
    monkeypatch.setattr("workloads.clients.base.open_loop", None)
    for arrivals in (
        {"kind": "poisson", "rate": 1000},
        {"kind": "bursts", "rate_on": 9000, "mean_on": "1s", "mean_off": "9s"},
    ):
        with pytest.raises(WorkloadError, match="more than 100 requests"):
            make(kind="random", arrivals=arrivals, duration="1d")


def test_encoder_inputs_change_nothing_else() -> None:
    """Inputs of requests that are samples of one prompt are the same; without the key there are none."""
    for kind, section in KINDS.items():
        plain = make(kind=kind, **section)
        w = make(kind=kind, **section, encoder_len={"kind": "uniform", "low": 5, "high": 900})
        assert plain.encoder_tokens is None
        assert w.encoder_tokens is not None
        assert w.encoder_tokens.min() >= 5
        assert len(np.unique(w.encoder_tokens)) > 3
        assert plain.content_hash() != w.content_hash()
        assert plain.content_hash() == dataclasses.replace(w, encoder_tokens=None).content_hash()
        if kind == "sampling":
            for encoder, first in zip(w.encoder_tokens, w.seg_id[w.seg_ptr[:-1]], strict=True):
                same = w.seg_id[w.seg_ptr[:-1]] == first
                assert set(w.encoder_tokens[same].tolist()) == {encoder}
