"""Readers of trace files: `read_trace` picks the reader by name, or by the file's first line."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.errors import WorkloadError
from workloads.files import Content, LineFile, read, resolve
from workloads.readers.options import ReadOptions, check_applicable
from workloads.requests import Workload

if TYPE_CHECKING:
    from workloads.spool import Spool

#: format -> (module, function); a reader takes the file's content and the options.
READERS: dict[str, tuple[str, str]] = {
    "mooncake": ("workloads.readers.mooncake", "read_mooncake"),
    "azure": ("workloads.readers.tables", "read_azure"),
    "burstgpt": ("workloads.readers.tables", "read_burstgpt"),
    "vllm": ("workloads.readers.vllm_bench", "read_vllm"),
    "logical": ("workloads.readers.logical", "read_logical"),
    "native": ("workloads.readers.native", "read_content"),
}

#: format -> (module, class) of those that are read part by part.
IN_PARTS: dict[str, tuple[str, str]] = {
    "mooncake": ("workloads.readers.mooncake", "Mooncake"),
    "azure": ("workloads.readers.tables", "Azure"),
    "burstgpt": ("workloads.readers.tables", "BurstGPT"),
}


def read_trace(
    path: str | Path,
    trace_format: str = "auto",
    options: ReadOptions | None = None,
    base_dir: str | Path | None = None,
) -> Workload:
    """Read a trace file.

    Args:
        path: the file, gzip or not.
        trace_format: a name in `READERS`, or "auto".
        options: what the reader shall do; None: the defaults.
        base_dir: folder where a relative path is looked for first.

    Raises:
        WorkloadError: the file is missing or broken, or its format is not known.
    """
    content = read(path, base_dir)
    name = detect(content) if trace_format == "auto" else trace_format
    if name not in READERS:
        raise WorkloadError(f"unknown trace format {name!r}; use auto or one of {', '.join(READERS)}")
    module, function = READERS[name]
    reader: Callable[[Content, ReadOptions], Workload] = getattr(import_module(module), function)
    options = options or ReadOptions()
    try:
        check_applicable(name, options)
        return reader(content, options)
    except WorkloadError as error:
        raise _placed(error, content.path) from error


def read_or_spool(
    path: str | Path,
    trace_format: str,
    options: ReadOptions,
    base_dir: str | Path | None,
    folder: Callable[[], Path],
    limit: int,
) -> Workload | Spool:
    """As `read_trace`, but more than `limit` requests are written to disk, and the formats of `IN_PARTS` and
    native JSON lines are never in memory as a whole unless they have to be sorted.

    Args:
        folder: makes an empty folder for the spool, or gives the one it has made; not called where a Workload
            comes back.

    Raises:
        WorkloadError: as `read_trace`.
        OSError: the spool can't be written.
    """
    from workloads.readers.parts import OutOfOrderError, TraceParts, put_together_or_spool
    from workloads.spool import spool_workload

    found = resolve(path, base_dir)
    name = _by_first_line(found) if trace_format == "auto" else trace_format
    if name in IN_PARTS:
        module, kind = IN_PARTS[name]
        try:
            check_applicable(name, options)
            trace: TraceParts = getattr(import_module(module), kind)(found, options)
            file = LineFile(found)
            return put_together_or_spool(trace, file.lines(), file.sha256, folder, limit)
        except OutOfOrderError:
            pass
        except WorkloadError as error:
            raise _placed(error, found) from error
    if name == "native" and not _is_parquet(found):
        from workloads.readers.native import spool_lines

        check_applicable(name, options)
        spool = spool_lines(found, folder, limit)
        if spool is not None:
            return spool
    workload = read_trace(path, trace_format, options, base_dir)
    return workload if len(workload) <= limit else spool_workload(workload, folder())


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _by_first_line(path: Path) -> str:
    """The format, or "" where the first line alone does not say it."""
    try:
        line = next(text for text in LineFile(path).lines() if text.strip())
        return "" if '"input_lens"' in line else detect(Content(path, line.encode(), ""))
    except (WorkloadError, StopIteration):
        return ""


def _placed(error: WorkloadError, path: Path) -> WorkloadError:
    """With the file, where it names none."""
    return error if error.file is not None else WorkloadError(error.message, path)


def detect(content: Content) -> str:
    """The format of a file, by its first bytes or its first line.

    Raises:
        WorkloadError: it looks like none of the formats.
    """
    if content.data.startswith(b"PAR1"):
        return "native"
    if b'"input_lens"' in content.data and content.data.lstrip().startswith(b"{"):
        return "vllm"
    first = next(line for line in content.lines() if line.strip())
    try:
        row = json.loads(first)
    except json.JSONDecodeError as error:
        if first.lstrip().startswith("{"):
            raise WorkloadError(f"not valid JSON: {error.msg}", content.path, 1, error.colno) from None
        header = {name.strip() for name in first.split(",")}
        if {"ContextTokens", "GeneratedTokens"} & header:
            return "azure"
        if {"Request tokens", "Response tokens"} & header:
            return "burstgpt"
        raise _unknown(content) from None
    if isinstance(row, dict):
        for key, name in (
            ("kvpool_workload", "native"),
            ("hash_ids", "mooncake"),
            ("arrival_step", "logical"),
            ("prompt", "vllm"),
            ("prompt_token_ids", "vllm"),
            ("prompt_len", "vllm"),
            ("input_len", "vllm"),
        ):
            if key in row:
                return name
    raise _unknown(content)


def _unknown(content: Content) -> WorkloadError:
    return WorkloadError(
        f"the format is not recognised from the first line; name it, one of {', '.join(READERS)}",
        content.path,
        1,
        1,
    )
