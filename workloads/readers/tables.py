"""Azure and BurstGPT traces: CSV files of times and lengths.

Nothing is known of shared prefixes, so nothing is shared: every request has a segment of its own.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from workloads.builder import assemble
from workloads.errors import WorkloadError
from workloads.files import Content
from workloads.readers.options import ReadOptions, arrange, provenance
from workloads.readers.rows import MAX_TIME_NS, Table
from workloads.requests import Int64Array, Workload
from workloads.units import NS_PER_SECOND

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_DAYS = 84_000
BURSTGPT_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


def read_azure(content: Content, options: ReadOptions) -> Workload:
    """Read an Azure LLM inference trace; arrivals are relative to the first.

    Raises:
        WorkloadError: a row is broken (file:line:column), or no request is left.
    """
    table = Table(content.path, content.lines(), AZURE_COLUMNS, "an Azure trace")
    prompts = table.integers("ContextTokens")
    outputs = table.integers("GeneratedTokens")
    return _unshared(content, "azure", options, _utc_times(table), prompts, outputs, [])


def read_burstgpt(content: Content, options: ReadOptions) -> Workload:
    """Read a BurstGPT trace (times in seconds); rows without response tokens failed: left out, with a note.

    Raises:
        WorkloadError: a row is broken (file:line:column), or no request is left.
    """
    table = Table(content.path, content.lines(), BURSTGPT_COLUMNS, "a BurstGPT trace")
    prompts = table.integers("Request tokens")
    outputs = table.integers("Response tokens")
    times = _second_times(table, "Timestamp")
    keep = np.ones(len(table), dtype=np.bool_)
    notes = []
    for name, wanted in (("Model", options.model), ("Log Type", options.log_type)):
        if wanted is not None:
            column = table.text(name)
            keep &= np.array([text == wanted for text in column])
            if not keep.any():
                found = ", ".join(sorted(set(column)))
                raise WorkloadError(f"no row has {name} {wanted!r}; the file has {found}", content.path)
    if not keep.all():
        notes.append(f"{int(keep.sum())} of {len(table)} rows have the model and log type asked for")
    return _unshared(content, "burstgpt", options, times[keep], prompts[keep], outputs[keep], notes)


def _unshared(
    content: Content,
    name: str,
    options: ReadOptions,
    times: Int64Array,
    prompts: Int64Array,
    outputs: Int64Array,
    notes: list[str],
) -> Workload:
    """A workload of requests that share nothing; rows that failed (no output, or no prompt) are left out."""
    works = (prompts > 0) & (outputs > 0)
    failed = int(np.count_nonzero(~works))
    if failed:
        notes = [*notes, f"{failed} of {len(times)} rows have no output or no prompt (failed); left out"]
    if not works.any():
        raise WorkloadError("no row has a prompt and an output; the trace has no requests", content.path)
    rows = np.flatnonzero(works)
    arrivals = arrange(times[rows], options)
    rows = rows[arrivals.order]
    return assemble(
        vocab_size=options.vocab_size,
        arrival=arrivals.arrival,
        seg_id=rows.astype(np.int64),
        seg_len=prompts[rows],
        output_len=outputs[rows],
        request_ids=arrivals.request_ids,
        source=provenance(content, name, {"time_scale": options.time_scale}, notes + arrivals.notes),
    )


def _utc_times(table: Table) -> Int64Array:
    """ns since 1970 of the column TIMESTAMP: a date and a time, "+00:00" or "Z" allowed."""
    texts = [text.strip().removesuffix("+00:00").removesuffix("Z") for text in table.text("TIMESTAMP")]
    for i, text in enumerate(texts):
        if "+" in text or text.count("-") > 2:
            _refuse_time(table, i, "TIMESTAMP", "in UTC (no other time zone is understood)")
    try:
        days = np.array(texts, dtype="datetime64[D]").astype(np.int64)
        bad = (days < -MAX_DAYS) | (days > MAX_DAYS)  # NaT, of an empty text, is far below
        if bad.any():
            _refuse_time(table, int(np.argmax(bad)), "TIMESTAMP", "a date and time between 1740 and 2199")
        times = np.array(texts, dtype="datetime64[ns]")
    except ValueError:
        for i, text in enumerate(texts):
            try:
                np.datetime64(text, "ns")
            except ValueError:
                _refuse_time(table, i, "TIMESTAMP", "a date and time such as 2023-11-16 18:15:46.68")
        raise
    return times.astype(np.int64)


def _second_times(table: Table, name: str) -> Int64Array:
    """ns of a column of seconds."""
    texts = table.text(name)
    try:
        values = np.array(texts, dtype=np.float64)
    except ValueError:
        for i, text in enumerate(texts):
            try:
                float(text)
            except ValueError:
                _refuse_time(table, i, name, "a number of seconds")
        raise
    bad = ~((values >= 0) & (values <= MAX_TIME_NS / NS_PER_SECOND))
    if bad.any():
        _refuse_time(table, int(np.argmax(bad)), name, "a number of seconds of at least 0")
    return np.rint(values * NS_PER_SECOND).astype(np.int64)


def _refuse_time(table: Table, row: int, name: str, wanted: str) -> NoReturn:
    table.refuse(row, name, f"{name} must be {wanted}, got {table.text(name)[row]!r}")
