"""Live recorder: a vLLM plugin that writes what a running engine's block pool looks like into a file.

`register` is the package's entry point in the group `vllm.general_plugins`. vLLM calls it in each of its
processes; without KVPOOL_LIVE_RECORD it returns at once. With it, each scheduler that is made in the process
from then on is recorded (docs/live.md). Nothing that goes wrong here reaches the server.
"""

from __future__ import annotations

import logging
import os

PATH_VARIABLE = "KVPOOL_LIVE_RECORD"
OPTIONS_VARIABLE = "KVPOOL_LIVE_OPTIONS"

#: Below vLLM's own logger, so that its handler and level apply.
LOGGER_NAME = "vllm.kvpool_live"


def register() -> None:
    """Arrange for schedulers to be recorded if the environment asks for it; may be called again."""
    path = os.environ.get(PATH_VARIABLE)
    if not path:
        return
    log = logging.getLogger(LOGGER_NAME)
    try:
        from validation.live.hooks import record_new_schedulers
        from validation.live.options import parse_options

        record_new_schedulers(path, parse_options(os.environ.get(OPTIONS_VARIABLE, "")))
    except Exception as exc:
        log.error("kvpool: nothing will be recorded: %s", exc)
