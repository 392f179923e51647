"""Runs jobs in copies of the project, one forked process each; started by its path, never imported.

The heavy packages are imported once, before the forks, and nothing of the project is: each child imports the
project from its own copy. Reads one JSON job a line, writes one JSON answer a line:
{"tree", "tests"} -> pytest's exit code and last lines; {"tree", "search": {...}} -> `search.search`'s answer.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import Any


def _child(job: dict[str, Any]) -> dict[str, Any]:
    os.chdir(job["tree"])
    sys.path.insert(0, job["tree"])
    if "tests" in job:
        import pytest

        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            # without a compiler, numpy warns about the wrap-around that hashes are made of
            quiet = ["-q", "-p", "no:cacheprovider", "--tb=line", "-rN", "-W", "ignore::RuntimeWarning"]
            code = pytest.main([*quiet, *job["tests"]])
        return {"rc": int(code), "tail": said.getvalue().strip().splitlines()[-12:]}
    import warnings

    from validation.mutations.search import search

    warnings.simplefilter("ignore", RuntimeWarning)
    return {"found": search(**job["search"])}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The answer of one job, made in a child that is killed after job["timeout_s"] seconds."""
    began = time.monotonic()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        try:
            answer = _child(job)
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(write_end, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(write_end)
    content = b""
    deadline = began + job["timeout_s"]
    with os.fdopen(read_end, "rb", buffering=0) as file:
        while True:
            ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(pid, signal.SIGKILL)
                break
            chunk = file.read(1 << 16)
            if not chunk:
                break
            content += chunk
    os.waitpid(pid, 0)
    answer = json.loads(content) if ready and content else {"timeout": True}
    return answer | {"seconds": time.monotonic() - began}


def main() -> None:
    """Serve jobs until stdin ends."""
    # this folder is no place to import from
    sys.path = [
        p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))
    ]
    import numba  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401

    answers = sys.stdout
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
