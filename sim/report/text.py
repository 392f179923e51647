"""The summary on one screen: the answer first, 80 columns, colours only on a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TextIO

from sim.report.units import count, plural, pool_text, rules_name, seconds, share, size, span

WIDTH = 80
_LABEL = 20

Row = tuple[str, str]


def lines(summary: Mapping[str, Any], pool_note: str = "") -> list[Row]:
    """(style, text) of each line; styles are "title", "dim", "warn", "head" or "".

    Args:
        summary: of sim.summary.
        pool_note: said of the pool's size, such as "estimated".
    """
    s = summary
    out: list[Row] = []
    add = out.append
    requests = s["requests"]
    ended = {"finished": "finished", "until": "stopped at run.until", "interrupted": "INTERRUPTED"}
    head = f"{s['name']}: {ended.get(s['exit_reason'], s['exit_reason'])}"
    head += f" after {seconds(s['simulated_s'])} simulated, {plural(s['steps'], 'step')}"
    if s["busy"]:
        head += f", busy {share(s['busy'])}"
    add(("title" if s["exit_reason"] != "interrupted" else "warn", _wrap(head, WIDTH, "  ")))
    add(("dim", _wrap(_engine(s["engine"], pool_note), WIDTH, "")))
    add(("", ""))

    usage, waste, outside = s["usage"], s["internal_fragmentation"], s["external_fragmentation"]
    add(("head", _columns("", "mean", "p50", "p99", "max", "max at")))
    add(("", _metric("KV usage", usage)))
    of_states = s["engine"]["pool_tokens"] is None
    if not of_states:
        add(("", _metric("internal waste", waste)))
    add(("", _metric("external fragm.", outside)))
    add(("", _metric("free runs", s["free_runs"], plain=True)))
    each = " a replica" if "fleet" in s else ""
    add(("", _metric(f"running{each}", s["num_running"], plain=True)))
    add(("", _metric(f"waiting{each}", s["num_waiting"], plain=True)))
    add(("", ""))
    if "fleet" in s:
        from sim.report.fleet_text import fleet_lines

        out += [("", _field(label, text)) for label, text in fleet_lines(s["fleet"])]
        add(("", ""))
    if not of_states:
        add(("", _field("wasted memory", _wasted(s["waste"]))))
    add(("", _field("prefix cache", _cache(s["prefix_cache"]))))
    add(("", _field("preemptions", _preemptions(s["preemptions"]))))
    if "encoder" in s:
        add(("", _field("encoder", _encoder(s["encoder"]))))
    add(("", _field("throughput", _throughput(s["throughput"]))))
    add(("", ""))
    add(("head", _columns("latency", "mean", "p50", "p90", "p99", "max")))
    for name, label in (
        ("ttft_s", "first token"),
        ("tpot_s", "per output token"),
        ("e2e_s", "whole request"),
    ):
        q = s["latency"][name]
        add(("", _columns(label, *(span(q[k]) for k in ("mean", "p50", "p90", "p99", "max")))))
    add(("", ""))
    add(("", _field("requests", _requests(requests))))
    if s["worst_moment"]:
        add(("", _field("tightest moment", _moment(s["worst_moment"], s["engine"]))))
    if s["most_waste"]:
        add(("", _field("most waste", _most_waste(s["most_waste"]))))
    out += _warnings(s)
    return out


def _engine(e: Mapping[str, Any], note: str) -> str:
    where = e["model"] or ""
    if e["gpu"]:
        gpus = f"{e['gpus']} x {e['gpu']}" if e["gpus"] > 1 else e["gpu"]
        where = f"{where} on {gpus}" if where else gpus
    return ", ".join(x for x in (pool_text(e, note), where, rules_name(e)) if x)


def _columns(label: str, *cells: str) -> str:
    return f"{label:<{_LABEL}}" + "".join(f"{c:>12}" for c in cells)


def _metric(label: str, m: Mapping[str, Any] | None, plain: bool = False) -> str:
    if m is None:
        return _columns(label, *["-"] * 5)
    show = count if plain else share
    return _columns(label, *(show(m[k]) for k in ("mean", "p50", "p99", "max")), span(m["max_at_s"]))


def _field(label: str, text: str) -> str:
    """A label and its text, wrapped at 80 columns below itself."""
    return f"{label:<{_LABEL}}" + _wrap(text, WIDTH - _LABEL, " " * _LABEL)


def _wrap(text: str, width: int, indent: str) -> str:
    """Lines of at most `width` columns; numbers stay with their units, GPUs with their number."""
    rows, row = [], ""
    glued = re.sub(r"(?<=\d) (?=(?:%|[GMK]iB|ms|us|s|min|h)(?!\w))", "\xa0", text)
    glued = re.sub(r"(?<=\d) x ", "\xa0x\xa0", glued)
    for word in glued.split(" "):
        if row and len(row) + 1 + len(word) > width:
            rows.append(row)
            row = word
        else:
            row = f"{row} {word}" if row else word
    return f"\n{indent}".join([*rows, row]).replace("\xa0", " ")


def _wasted(w: Mapping[str, Any]) -> str:
    if w["mean_wasted_slots"] is None:
        return "-"
    text = f"{count(round(w['mean_wasted_slots']))} slots on average"
    if w["mean_wasted_bytes"] is not None:
        text += f" = {size(w['mean_wasted_bytes'])}"
    if w["waste_at_finish"] is not None:
        text += f"; {share(w['waste_at_finish'])} of a finished request's slots"
    return text


def _cache(c: Mapping[str, Any]) -> str:
    if not c["first_lookup_tokens"]:
        return "no lookups"
    text = f"{share(c['first_lookup_token_hit_rate'])} of {count(c['first_lookup_tokens'])} tokens hit"
    text += " at first lookup"
    if c["resumed_lookup_tokens"]:
        text += f", {share(c['resumed_token_hit_rate'])} when resumed"
    text += f"; {plural(c['evicted_blocks'], 'block')} evicted"
    if c["evicted_unused_blocks"]:
        text += f", {share(c['evicted_unused_blocks'] / c['evicted_blocks'])} of them never reused"
    return text


def _preemptions(p: Mapping[str, Any]) -> str:
    if not p["preemptions"]:
        return "none"
    return (
        f"{count(p['preemptions'])} of {plural(p['requests_preempted'], 'request')},"
        f" {count(p['recomputed_tokens'])} tokens recomputed"
    )


def _encoder(e: Mapping[str, Any]) -> str:
    text = f"{count(e['tokens'])} tokens"
    if e["refused"]:
        text += f"; the next request found no room in a step's budget {plural(e['refused'], 'time')}"
    return text


def _throughput(t: Mapping[str, Any]) -> str:
    if t["requests_per_s"] is None:
        return "-"
    return (
        f"{count(t['requests_per_s'])} requests/s, {count(t['prompt_tokens_per_s'])} prompt and"
        f" {count(t['output_tokens_per_s'])} output tokens/s"
    )


def _requests(r: Mapping[str, Any]) -> str:
    text = f"{count(r['finished'])} finished of {count(r['arrived'])} arrived"
    if r["total"] > r["arrived"]:
        text += f" ({count(r['total'])} in the workload)"
    if r["unfinished"]:
        text += f"; {count(r['unfinished'])} unfinished"
    return text


def _moment(m: Mapping[str, Any], engine: Mapping[str, Any]) -> str:
    return (
        f"{seconds(m['time_s'])}: {count(m['num_free_blocks'])} of {count(engine['usable_blocks'])} blocks"
        f" free, {count(m['num_running'])} running, {count(m['num_waiting'])} waiting"
    )


def _most_waste(m: Mapping[str, Any]) -> str:
    part = m["wasted_slots"] / m["allocated_slots"] if m["allocated_slots"] else 0.0
    return (
        f"{seconds(m['time_s'])}: {plural(m['wasted_slots'], 'slot')} wasted ({share(part)} of those"
        f" allocated), {count(m['num_running'])} running"
    )


def _warnings(s: Mapping[str, Any]) -> list[Row]:
    out: list[Row] = []
    r = s["requests"]
    if r["unservable"]:
        longest = max(x["prompt_tokens"] for x in s["unservable"])
        out.append(
            (
                "warn",
                _field(
                    "! unservable",
                    f"{plural(r['unservable'], 'request')} can never fit the pool of"
                    f" {count(s['engine']['pool_tokens'])} tokens (a prompt of {count(longest)}, say);"
                    " dropped, status 5 in requests.parquet",
                ),
            )
        )
    if r["rejected"]:
        out.append(
            (
                "warn",
                _field(
                    "! rejected",
                    f"{plural(r['rejected'], 'request')} with a prompt not shorter than max_model_len;"
                    " status 4 in requests.parquet",
                ),
            )
        )
    return out


def render(summary: Mapping[str, Any], stream: TextIO, pool_note: str = "") -> None:
    """Write the summary to `stream`; with colours if it is a terminal."""
    rows = lines(summary, pool_note)
    if not stream.isatty():
        stream.write("\n".join(text.rstrip() for _, text in rows) + "\n")
        stream.flush()
        return
    from rich.console import Console
    from rich.text import Text

    styles = {"title": "bold green", "dim": "dim", "warn": "bold yellow", "head": "bold"}
    console = Console(file=stream, highlight=False)
    for style, text in rows:
        console.print(Text(text, style=styles.get(style, "")))
