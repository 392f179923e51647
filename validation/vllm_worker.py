"""A process that runs one vLLM release: takes cases from its standard input, answers with their recordings.

Started by `validation.releases.Worker` with the release's folder in PYTHONPATH; what vLLM prints goes to
standard error. Messages are pickled: `("record", settings, requests)` -> a Recording, or the text of an
InputError as str; `None` ends the process.
"""

from __future__ import annotations

import os
import pickle
import sys


def main() -> None:
    """Answer until the other side has had enough."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from sim.errors import InputError
    from validation.record import record
    from validation.vllm_release import installed

    pickle.dump(installed(), answers)
    answers.flush()
    while True:
        message = pickle.load(sys.stdin.buffer)
        if message is None:
            return
        _, settings, requests = message
        answer: object
        try:
            answer = record("scheduler", settings, requests)
        except InputError as exc:
            answer = str(exc)
        except Exception as exc:
            # An assertion inside a release is a finding about that release, not an end of the survey.
            answer = f"{type(exc).__name__}: {exc}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
