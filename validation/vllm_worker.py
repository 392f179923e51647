"""A process that runs one vLLM release: takes questions from its standard input, and answers them.

Started by `validation.releases.Worker` with the release's folder in PYTHONPATH; what vLLM prints goes to
standard error. Messages are pickled; a failure is answered with its text as str, `None` ends the process.

    ("record", settings, requests)    -> Recording
    ("sizing", question, memories)    -> validation.sizing.answer.Answer
    ("mixes", mixes)                  -> list of plans, as `validation.sizing.real_plan`
    ("defaults",)                     -> dict, as `validation.release_defaults`
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any


def main() -> None:
    """Answer until the other side has had enough."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from sim.errors import InputError
    from validation.vllm_release import installed

    pickle.dump(installed(), answers)
    answers.flush()
    while True:
        message = pickle.load(sys.stdin.buffer)
        if message is None:
            return
        kind, *what = message
        answer: object
        try:
            answer = _answer(kind, what)
        except InputError as exc:
            answer = str(exc)
        except Exception as exc:
            # An assertion inside a release is a finding about that release, not an end of the survey.
            answer = f"{type(exc).__name__}: {exc}"
        pickle.dump(answer, answers)
        answers.flush()


def _answer(kind: str, what: list[Any]) -> object:
    if kind == "sizing":
        from validation.sizing.answer import answer

        return answer(*what)
    if kind == "mixes":
        from validation.sizing.answer import answer_mixes

        return answer_mixes(*what)
    if kind == "defaults":
        from validation.release_defaults import release_defaults

        return release_defaults()
    from validation.record import record

    return record("scheduler", *what)


if __name__ == "__main__":
    main()
