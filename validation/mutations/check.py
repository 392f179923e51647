"""Plants each fault and runs its test; makes the recordings that the tests replay."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.errors import InputError
from validation.mutations.fault import Fault
from validation.mutations.faults import FAULTS
from validation.mutations.trees import ROOT, CheckError, Worker, patched, worker

RECORDED = ROOT / "tests" / "recorded_vllm"
_TEST_SECONDS = 60.0
_SEARCH_SECONDS = 400.0
_TESTS_FAILED = 1


@dataclass(frozen=True)
class Verdict:
    """What became of one fault.

    outcome: "caught" (the named test failed), "MISSED" (it passed), "caught: hangs" (it did not end), or why
    there is no verdict.
    """

    fault: Fault
    outcome: str
    seconds: float
    detail: str = ""

    @property
    def caught(self) -> bool:
        """Whether the fault was noticed."""
        return self.outcome.startswith("caught")


def plant(running: Worker, fault: Fault) -> Verdict:
    """Run a fault's test in a copy that has the fault. Raises PatchError when the fault can't be planted."""
    answer = running.ask(fault, _TEST_SECONDS, tests=[fault.test])
    if answer.get("timeout"):
        return Verdict(fault, "caught: hangs", answer["seconds"])
    if "error" in answer:
        return Verdict(fault, "no verdict", answer["seconds"], answer["error"])
    detail = "\n".join(answer["tail"])
    if answer["rc"] == _TESTS_FAILED:
        reason = next((line for line in answer["tail"] if "row " in line or "Error" in line), "")
        return Verdict(fault, "caught", answer["seconds"], reason)
    outcome = "MISSED" if answer["rc"] == 0 else f"no verdict: pytest ended with {answer['rc']}"
    return Verdict(fault, outcome, answer["seconds"], detail)


def require_passing(running: Worker, faults: Sequence[Fault]) -> None:
    """Raise CheckError unless the tests pass where there is no fault: a test that always fails catches
    nothing."""
    answer = running.ask(None, _TEST_SECONDS * 4, tests=[fault.test for fault in faults])
    if answer.get("rc") != 0:
        said = answer.get("tail") or [str(answer)]
        raise CheckError("the tests fail without any fault:\n" + "\n".join(said))


def check(faults: Sequence[Fault], say: Callable[[Verdict], None]) -> list[Verdict]:
    """Plant each fault in turn; `say` hears each verdict as it falls.

    Raises PatchError when a fault can't be planted, CheckError when the tests fail as it is.
    """
    verdicts = []
    for fault in faults:
        patched(fault)  # all that can't be planted, before any time is spent
    with worker() as running:
        require_passing(running, faults)
        for fault in faults:
            verdicts.append(plant(running, fault))
            say(verdicts[-1])
    return verdicts


def make_recordings(faults: Sequence[Fault], say: Callable[[str], None]) -> None:
    """Search a small case for each fault with a recording of its own and record it (needs vLLM).

    Raises CheckError, when all are done, for those of which no case was found.
    """
    from validation.corpus import write_case
    from validation.fuzz_cases import Case
    from validation.logical import read_requests
    from validation.record import load_settings, record
    from validation.vllm_setup import require_vllm

    require_vllm()
    missing: list[str] = []
    with worker() as running, tempfile.TemporaryDirectory(prefix="kvpool-cases-") as folder:
        for fault in (f for f in faults if not f.recording):
            job = {"name": fault.name, "first": 0, "count": 2000, "max_tries": 120}
            answer = running.ask(fault, _SEARCH_SECONDS, search=job)
            found = answer.get("found")
            if not found:
                missing.append(fault.name)
                say(f"{fault.name}: no case that shows it: {answer}")
                continue
            config, requests = Path(folder) / "config.json", Path(folder) / "workload.jsonl.gz"
            config.write_text(found["config.json"])
            requests.write_bytes(gzip.compress(found["workload.jsonl"].encode()))
            case = Case(fault.name, load_settings(config, "scheduler"), tuple(read_requests(requests)))
            log = record("scheduler", case.settings, case.requests).log
            written = write_case(RECORDED / "mutations", case, log)
            say(f"{written}: {len(log['step'])} rows, {answer['seconds']:.0f} s")
    if missing:
        raise CheckError(f"no recording was made for {', '.join(missing)}")


def chosen(names: Sequence[str]) -> list[Fault]:
    """Faults by name, all when none is named. Raises InputError for an unknown name."""
    from sim.errors import did_you_mean

    known = {fault.name: fault for fault in FAULTS}
    for name in names:
        if name not in known:
            raise InputError(f"no fault {name!r}", "--only", hint=did_you_mean(name, known))
    return [known[name] for name in names] if names else list(FAULTS)
