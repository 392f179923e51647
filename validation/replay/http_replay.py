"""Replay against a running `vllm serve`: requests over HTTP at their times, /metrics polled meanwhile.

What a server shows is less than what an engine in this process shows: usage, running and waiting requests,
prefix-cache counters and preemptions, at the moments of polling; no blocks, no steps.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from sim.errors import InputError
from validation.replay.client import FINISHED, REJECTED, RUNNING, WAITING, Arrivals, WallClock, nothing_sent
from validation.replay.hardware import describe_load, describe_machine, describe_python
from validation.replay.http_client import HttpError, Server, get, parse_metrics, parse_url, request
from validation.replay.plan import Plan, salt_text
from validation.replay.recording import Recording, Table, request_table
from workloads.tokens import tokens_of

#: validation.vllm_forced_output.OUTPUT_KEY, which can't be imported without vLLM.
OUTPUT_KEY = "kvpool_output_token_ids"
FAILED = 6

_GAUGES = {"num_running": "vllm:num_requests_running", "num_waiting": "vllm:num_requests_waiting"}
_COUNTERS = {
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "preemptions": "vllm:num_preemptions_total",
}
#: Counters of newer servers, for a fit of the step time: metric and a label it is restricted to.
_WORK = {
    "engine_steps": ("vllm:iteration_tokens_total_count", None),
    "computed_prompt_tokens": ("vllm:prompt_tokens_by_source_total", ("source", "local_compute")),
    "generated_tokens": ("vllm:generation_tokens_total", None),
}
_USAGE = "vllm:kv_cache_usage_perc"
_TROUBLE = (OSError, HttpError, TimeoutError, asyncio.IncompleteReadError, ValueError, KeyError)
#: So long may a server say that it has no request while an answer is still open; then that one is lost.
LOST_AFTER_S = 30.0
T = TypeVar("T")


class _Run:
    """One replay: its clock, what was sent, and what the server said."""

    def __init__(
        self, plan: Plan, server: Server, model: str, poll_ns: int, force: bool, clock: WallClock
    ) -> None:
        self.plan, self.server, self.model = plan, server, model
        self.poll_ns, self.force, self.clock = poll_ns, force, clock
        self.arrivals = Arrivals(plan.workload)
        self.sent = nothing_sent(len(plan.workload))
        self.rows: list[dict[str, float]] = []
        self.produced: dict[int, list[int]] = {}
        self.errors: list[str] = []
        self.missed_polls = 0
        self.over = False
        self.lost_after_s = LOST_AFTER_S
        self.idle_since: int | None = None
        self.changed = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Send everything and wait for it."""
        await self.read_metrics()
        poller = asyncio.create_task(self._poll())
        try:
            await self._send_all()
        finally:
            # before Python 3.12 wait_for may swallow a cancellation that meets the end of what it waits for
            self.over = True
            poller.cancel()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(poller, *self.tasks, return_exceptions=True)
        await self.read_metrics()

    async def _send_all(self) -> None:
        until = self.plan.resolved.until_ns
        while self.arrivals.open:
            now = self.clock.now()
            if until is not None and now >= until:
                return
            self.changed.clear()
            while (due := self.arrivals.due(now)) is not None:
                self._start(*due, now)
            waits = [t for t in (self.arrivals.next_ns(), until) if t is not None]
            pause = max(0.0, (min(waits) - self.clock.now()) / 1e9) if waits else None
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.changed.wait(), pause)

    def _start(self, at: int, i: int, now: int) -> None:
        self.sent.arrival_ns[i] = at
        if self.plan.is_rejected(i):
            self._end(i, at, REJECTED)
            return
        self.sent.order.append(i)
        self.sent.added_ns[i], self.sent.status[i] = now, WAITING
        task = asyncio.create_task(self._complete(i))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _end(self, i: int, at: int, status: int) -> None:
        self.sent.finish_ns[i], self.sent.status[i] = at, status
        self.arrivals.ended(i, at)
        self.changed.set()

    async def _complete(self, i: int) -> None:
        status = FINISHED
        stream = asyncio.ensure_future(self._stream(i))
        try:
            while not stream.done():
                await asyncio.wait({stream}, timeout=1.0)
                if not stream.done() and self._is_lost(i):
                    stream.cancel()
                    seconds = f"{self.lost_after_s:g} s"
                    raise HttpError(f"no end came, and the server has had no request for {seconds}")
            stream.result()
        except _TROUBLE as e:
            self.errors.append(f"{self.plan.workload.request_id(i)}: {type(e).__name__}: {e}"[:300])
            status = FAILED
        finally:
            stream.cancel()
        self._end(i, self.clock.now(), status)

    def _is_lost(self, i: int) -> bool:
        """The server has had nothing to do for long, all of it after this request was sent."""
        if self.idle_since is None:
            return False
        since = max(self.idle_since, int(self.sent.added_ns[i]))
        return self.clock.now() - since > self.lost_after_s * 1e9

    async def _stream(self, i: int) -> None:
        workload, sent = self.plan.workload, self.sent
        tokens: list[int] = []
        async with request(self.server, "/v1/completions", self.body(i)) as answer:
            if answer.status != 200:
                text = (await answer.body()).decode(errors="replace")
                raise HttpError(f"status {answer.status}: {text}")
            async for event in answer.events():
                data = json.loads(event)
                if "error" in data:
                    raise HttpError(str(data["error"]))
                for choice in data.get("choices", ()):
                    if sent.first_token_ns[i] < 0:
                        sent.first_token_ns[i], sent.status[i] = self.clock.now(), RUNNING
                    tokens += choice.get("token_ids") or ()
                if data.get("usage"):
                    sent.produced[i] = int(data["usage"]["completion_tokens"])
        sent.produced[i] = max(int(sent.produced[i]), len(tokens))
        if len(tokens) == int(workload.output_len[i]):
            self.produced[int(workload.out_seg[i])] = tokens
        if sent.produced[i] != workload.output_len[i]:
            raise HttpError(f"{sent.produced[i]} tokens came, {workload.output_len[i]} were asked for")

    def body(self, i: int) -> dict[str, Any]:
        """The completion request of request i."""
        workload = self.plan.workload
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt(i),
            "max_tokens": int(workload.output_len[i]),
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        if workload.salt[i]:
            body["cache_salt"] = salt_text(int(workload.salt[i]))
        if workload.priority[i]:
            body["priority"] = int(workload.priority[i])
        if self.force:
            body["vllm_xargs"] = {OUTPUT_KEY: workload.output_tokens(i).tolist()}
        return body

    def prompt(self, i: int) -> list[int]:
        """Token ids of a prompt; where it repeats an earlier answer, that answer as the server gave it."""
        w = self.plan.workload
        out: list[int] = []
        for j in range(int(w.seg_ptr[i]), int(w.seg_ptr[i + 1])):
            segment, start, n = int(w.seg_id[j]), int(w.seg_start[j]), int(w.seg_len[j])
            answer = self.produced.get(segment, ())[start : start + n]
            if len(answer) == n:
                out += answer
            else:
                out += tokens_of(segment, start, n, w.vocab_size, w.tokens).tolist()
        return out

    async def _poll(self) -> None:
        due = self.clock.now()
        while not self.over:
            due = max(due + self.poll_ns, self.clock.now())
            await asyncio.sleep(max(0.0, (due - self.clock.now()) / 1e9))
            await self.read_metrics()

    async def read_metrics(self) -> None:
        """One reading of /metrics: what cannot be had is counted and left out."""
        try:
            found = parse_metrics((await get(self.server, "/metrics")).decode())
            row = {name: _sum(found, metric) for name, metric in (_GAUGES | _COUNTERS).items()}
            row["usage"] = _sum(found, _USAGE)
            if all(metric in found for metric, _ in _WORK.values()):
                row |= {name: _sum(found, metric, label) for name, (metric, label) in _WORK.items()}
        except _TROUBLE:
            self.missed_polls += 1
            return
        now = self.clock.now()
        if row["num_running"] + row["num_waiting"] > 0:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = now
        self.rows.append({"time_ns": float(now), **row})

    def tables(self) -> tuple[Table, Table]:
        """Timeline and requests; counters count from the start of the replay."""
        usable = self.plan.settings.usable_blocks
        names = [name for name in self.rows[0] if all(name in row for row in self.rows)]
        columns = {name: np.array([row[name] for row in self.rows]) for name in names}
        for name in (name for name in names if name in _COUNTERS or name in _WORK):
            columns[name] = columns[name] - columns[name][0]
        timeline: Table = {
            name: np.rint(v).astype(np.int64) for name, v in columns.items() if name != "usage"
        }
        timeline["used_blocks"] = np.rint(columns["usage"] * usable).astype(np.int64)
        ends = np.sort(self.sent.finish_ns[self.sent.status == FINISHED])
        timeline["finished"] = np.searchsorted(ends, timeline["time_ns"], side="right").astype(np.int64)
        never = np.full(len(self.plan.workload), -1, np.int64)
        requests = request_table(
            {
                "arrival_ns": self.sent.arrival_ns,
                "first_scheduled_ns": never,
                "first_token_ns": self.sent.first_token_ns,
                "finish_ns": self.sent.finish_ns,
                "prompt_tokens": self.plan.workload.prompt_len,
                "output_tokens": self.sent.produced,
                "status": self.sent.status,
                "added_ns": self.sent.added_ns,
            }
        )
        return timeline, requests


def _sum(
    found: dict[str, list[tuple[dict[str, str], float]]], name: str, label: tuple[str, str] | None = None
) -> float:
    """A metric over all its labels, or those with one label; raises KeyError where the server has it not."""
    return sum(v for labels, v in found[name] if label is None or labels.get(label[0]) == label[1])


def replay(
    plan: Plan, url: str, model: str | None = None, poll_ns: int = 100_000_000, force: bool = False
) -> Recording:
    """Run a plan against a running server.

    Args:
        plan: what to send; its engine section describes the server.
        url: of the server.
        model: name of the served model; None: the first one.
        poll_ns: between two readings of /metrics.
        force: ask for the workload's output tokens (the server has the ForcedOutput logits processor).

    Raises:
        InputError: no server there, it has no such metrics, or its pool is not the config's.
    """
    server = parse_url(url)
    return asyncio.run(_replay(plan, server, model, max(1_000_000, poll_ns), force))


async def _asked(server: Server, what: Awaitable[T]) -> T:
    try:
        return await what
    except _TROUBLE as e:
        raise InputError(
            f"no vLLM server answers at {server.url}: {type(e).__name__}: {e}", "--url",
            hint="start one with `vllm serve`, or leave --url out",
        ) from None  # fmt: skip


async def _replay(plan: Plan, server: Server, model: str | None, poll_ns: int, force: bool) -> Recording:
    served = json.loads(await _asked(server, get(server, "/v1/models")))["data"]
    names = [entry["id"] for entry in served]
    if model is not None and model not in names:
        raise InputError(
            f"the server has no model '{model}'", "--served-model", hint=f"it has {', '.join(names)}"
        )
    metrics = parse_metrics((await _asked(server, get(server, "/metrics"))).decode())
    _check_server(plan, server, metrics)
    version = json.loads(await _asked(server, get(server, "/version"))).get("version")
    before = describe_load()
    began = time.time()
    run = _Run(plan, server, model or names[0], poll_ns, force, WallClock())
    await run.run()
    if len(run.rows) < 2:
        raise InputError(f"{server.url}/metrics could not be read during the run", "--url")
    timeline, requests = run.tables()
    info = {
        "device": "server",
        "url": server.url,
        "machine": describe_machine("cpu"),
        "machine_note": "the machine of the client; the server does not tell its own",
        "software": {"vllm": version, **describe_python()},
        "load_before": before,
        "load_after": describe_load(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": int(timeline["time_ns"][-1]) / 1e9,
        "polls": len(run.rows),
        "missed_polls": run.missed_polls,
        "forced_output": force,
        "failed_requests": len(run.errors),
        "first_errors": run.errors[:3],
    }
    return Recording("http", timeline, requests, None, None, run.sent.order, info)


def _check_server(plan: Plan, server: Server, metrics: dict[str, list[tuple[dict[str, str], float]]]) -> None:
    """Raise InputError unless the server has the metrics and the pool of the config."""
    for name in (*_GAUGES.values(), *_COUNTERS.values(), _USAGE):
        if name not in metrics:
            raise InputError(
                f"{server.url}/metrics has no {name}", "--url",
                hint="the server must be vLLM and must not run with --disable-log-stats",
            )  # fmt: skip
    labels = next((labels for labels, _ in metrics.get("vllm:cache_config_info", ())), {})
    settings = plan.settings
    for key, ours in (("block_size", settings.block_size), ("num_gpu_blocks", settings.num_gpu_blocks)):
        theirs = labels.get(key, "")
        if theirs.isdigit() and int(theirs) != ours:
            raise InputError(
                f"the server's {key} is {theirs}, the config's is {ours}", plan.config_file,
                hint=f"--set engine.{key}={theirs}, so that the same pool is simulated",
            )  # fmt: skip
