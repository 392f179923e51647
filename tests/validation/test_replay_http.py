"""The replay over HTTP against a small server on the loopback that looks like vLLM's."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.errors import InputError
from tests.validation.replay_fakes import CONFIG, write_config
from validation.replay import http_replay
from validation.replay.http_client import parse_metrics, parse_url
from validation.replay.http_replay import replay
from validation.replay.plan import load_plan
from validation.replay.report import choose_model, investigate, write_report

MODEL = "fake"


class FakeServer:
    """Answers as vLLM does, one token every 2 ms, token k of an answer being 1000 + k."""

    def __init__(self, blocks: int = 40, fails: int | None = None, loses: int | None = None) -> None:
        self.blocks = blocks
        self.fails = fails
        self.loses = loses
        self.bodies: list[dict[str, Any]] = []
        self.running = self.tokens = self.prompts = 0
        self.loop = asyncio.new_event_loop()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeServer:
        self.thread.start()
        assert self.ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        server = self.loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        self.loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(None, 2)
        if method == "GET":
            text = {
                "/v1/models": json.dumps({"data": [{"id": MODEL}]}),
                "/version": json.dumps({"version": "0.32.0"}),
                "/metrics": self._metrics(),
            }[path].encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        else:
            length = next(int(x.split(":")[1]) for x in head.split("\r\n") if x.startswith("Content-Length"))
            body = json.loads(await reader.readexactly(length))
            await self._complete(body, reader, writer)
        await writer.drain()
        writer.close()

    def _metrics(self) -> str:
        counters = {
            "num_requests_running": self.running,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": min(1.0, self.running / 10),
            "prefix_cache_queries_total": 500 + 10 * self.prompts,
            "prefix_cache_hits_total": 200 + 4 * self.prompts,
            "num_preemptions_total": 7,
        }
        lines = [f'vllm:{k}{{engine="0",model_name="{MODEL}"}} {float(v)}' for k, v in counters.items()]
        lines.append(f'vllm:cache_config_info{{block_size="4",num_gpu_blocks="{self.blocks}"}} 1.0')
        return "# HELP vllm:x text\n" + "\n".join(lines) + "\n"

    async def _complete(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.bodies.append(body)
        if self.fails is not None and len(self.bodies) == self.fails:
            writer.write(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
            return
        self.running += 1
        self.prompts += 1
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

        def send(data: str) -> None:
            event = f"data: {data}\n\n".encode()
            writer.write(b"%x\r\n" % len(event) + event + b"\r\n")

        if len(self.bodies) == self.loses:
            self.running -= 1
            await writer.drain()
            await reader.read()  # until the client hangs up
            return
        for k in range(body["max_tokens"]):
            await asyncio.sleep(0.002)
            send(json.dumps({"choices": [{"text": "", "token_ids": [1000 + k]}]}))
            await writer.drain()
        send(json.dumps({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}}))
        send("[DONE]")
        writer.write(b"0\r\n\r\n")
        self.running -= 1


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def test_a_workload_over_http(server: FakeServer, tmp_path: Path) -> None:
    plan = load_plan(write_config(tmp_path))
    recording = replay(plan, server.url, poll_ns=5_000_000)
    requests = recording.requests
    n = len(plan.workload)
    assert len(requests["index"]) == n == len(server.bodies)
    assert (requests["status"] == 3).all()
    assert (requests["output_tokens"] == plan.workload.output_len).all()
    assert (requests["added_ns"] >= requests["arrival_ns"]).all()
    assert (requests["first_token_ns"] > requests["added_ns"]).all()
    for i, p in enumerate(plan.workload.parent.tolist()):
        if p >= 0:
            assert requests["arrival_ns"][i] == requests["finish_ns"][p] + plan.workload.think_ns[i]
    timeline = recording.timeline
    assert timeline["prefix_queries"][0] == 0
    assert timeline["prefix_queries"][-1] == 10 * n
    assert timeline["prefix_hits"][-1] == 4 * n
    assert timeline["preemptions"].max() == 0
    assert timeline["used_blocks"].max() > 0
    assert timeline["finished"][-1] == n
    assert recording.info["software"]["vllm"] == "0.32.0"
    assert recording.info["missed_polls"] == 0

    found = investigate(plan, recording, choose_model(plan, recording))
    report = write_report(found, tmp_path / "out", [])
    assert set(report["curves"]) == {"usage", "hit_rate", "preemptions", "running", "waiting", "finished"}
    assert report["step_time"]["source"] == "the config's"
    assert report["rules"] is None
    assert report["latency"]["e2e_s"]["real"]["count"] == n
    assert b"<svg" in (tmp_path / "out" / "report.html").read_bytes()


def test_what_is_asked_for(server: FakeServer, tmp_path: Path) -> None:
    plan = load_plan(write_config(tmp_path), ["workload.cache_salt=a"])
    replay(plan, server.url, force=True)
    w = plan.workload
    by_prompt_len = {}
    for body in server.bodies:
        assert body["model"] == MODEL
        assert body["ignore_eos"]
        assert body["stream"]
        assert body["cache_salt"] == f"salt-{w.salt[0]}"
        assert len(body["vllm_xargs"]["kvpool_output_token_ids"]) == body["max_tokens"]
        by_prompt_len.setdefault(len(body["prompt"]), []).append(body)
    assert sorted(len(b["prompt"]) for b in server.bodies) == sorted(w.prompt_len.tolist())
    child = int((w.parent >= 0).argmax())
    parent = int(w.parent[child])
    answer = [1000 + k for k in range(int(w.output_len[parent]))]
    prompts = [b["prompt"] for b in by_prompt_len[int(w.prompt_len[child])]]
    start = int(w.prompt_len[parent])
    assert any(p[start : start + len(answer)] == answer for p in prompts), "the server's own answer goes back"


def test_a_failed_request_is_counted_and_its_session_goes_on(tmp_path: Path) -> None:
    plan = load_plan(write_config(tmp_path))
    with FakeServer(fails=1) as server:
        recording = replay(plan, server.url)
    assert recording.info["failed_requests"] == 1
    assert "503" in recording.info["first_errors"][0]
    assert (recording.requests["status"] == 6).sum() == 1
    assert len(recording.requests["index"]) == len(plan.workload)


def test_a_poll_that_swallows_its_cancellation_does_not_keep_the_replay(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As asyncio.wait_for does before Python 3.12 when both come together."""
    read = http_replay._Run.read_metrics

    async def stubborn(self: http_replay._Run) -> None:
        try:
            await read(self)
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            swallowed.append(True)

    swallowed: list[bool] = []
    monkeypatch.setattr(http_replay._Run, "read_metrics", stubborn)
    plan = load_plan(write_config(tmp_path))
    recording = replay(plan, server.url, poll_ns=1_000_000)
    assert swallowed
    assert (recording.requests["status"] == 3).all()


def test_an_answer_that_never_ends_is_given_up_when_the_server_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.replay.http_replay.LOST_AFTER_S", 0.2)
    plan = load_plan(write_config(tmp_path))
    with FakeServer(loses=1) as server:
        recording = replay(plan, server.url, poll_ns=20_000_000)
    assert recording.info["failed_requests"] == 1
    assert "the server has had no request for 0.2 s" in recording.info["first_errors"][0]
    assert len(recording.requests["index"]) == len(plan.workload)


def test_another_pool_than_the_configs_is_refused(tmp_path: Path) -> None:
    plan = load_plan(write_config(tmp_path))
    with FakeServer(blocks=41) as server, pytest.raises(InputError, match="num_gpu_blocks is 41") as e:
        replay(plan, server.url)
    assert "--set engine.num_gpu_blocks=41" in str(e.value)


def test_no_server_and_no_such_model(server: FakeServer, tmp_path: Path) -> None:
    plan = load_plan(write_config(tmp_path, CONFIG))
    with pytest.raises(InputError, match="no model 'x'"):
        replay(plan, server.url, model="x")
    with pytest.raises(InputError, match="no vLLM server answers"):
        replay(plan, "http://127.0.0.1:9")


@pytest.mark.parametrize("url", ["https://host", "ftp://host", "http://", "http://host:99999"])
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InputError):
        parse_url(url)


def test_urls() -> None:
    assert parse_url("http://127.0.0.1:8000").url == "http://127.0.0.1:8000"
    assert parse_url("localhost:8000/v1/").url == "http://localhost:8000"
    assert parse_url("http://host/base").url == "http://host:80/base"


def test_metrics_text() -> None:
    text = '# TYPE a counter\na{x="1,2",y="b"} 3.0\na{x="c"} 4\nb 1e3\nbroken\nc{} NaN\n'
    found = parse_metrics(text)
    assert found["a"] == [({"x": "1,2", "y": "b"}, 3.0), ({"x": "c"}, 4.0)]
    assert found["b"] == [({}, 1000.0)]
    assert "broken" not in found
