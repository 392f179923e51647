"""The outcome as JUnit XML: a suite a baseline, a case a curve."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from sim.regression.check import FAILED, SKIPPED, Outcome, length_text, moved_text
from sim.regression.compare import MOVED

#: Characters that XML 1.0 has no place for.
_BAD = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    return _BAD.sub("?", text)


def junit_xml(outcomes: Sequence[Outcome]) -> bytes:
    """The document; a skipped or failed baseline has one case, ``baseline``."""
    root = ET.Element("testsuites", name="kvpool baselines")
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for outcome in outcomes:
        suite = ET.SubElement(root, "testsuite", name=outcome.name)
        counts = _suite(suite, outcome)
        for key, n in counts.items():
            suite.set(key, str(n))
            totals[key] += n
        suite.set("time", f"{outcome.wall_s:.3f}")
    for key, n in totals.items():
        root.set(key, str(n))
    root.set("time", f"{sum(o.wall_s for o in outcomes):.3f}")
    ET.indent(root)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="utf-8") + b"\n"


def _suite(suite: ET.Element, outcome: Outcome) -> dict[str, int]:
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}

    def case(name: str, kind: str = "", message: str = "") -> None:
        element = ET.SubElement(
            suite,
            "testcase",
            classname=f"baselines.{outcome.name}",
            name=name,
            file=str(outcome.path),
            time=f"{outcome.wall_s if not counts['tests'] else 0.0:.3f}",
        )
        counts["tests"] += 1
        if kind:
            first = _clean(message.partition("\n")[0])
            ET.SubElement(element, kind, message=first).text = _clean(message)
            counts[{"failure": "failures", "error": "errors", "skipped": "skipped"}[kind]] += 1

    c = outcome.comparison
    if c is None:
        kinds = {SKIPPED: "skipped", FAILED: "error"}
        case("baseline", kinds[outcome.status], outcome.reason)
        return counts
    case("length", "failure" if c.length_moved else "", length_text(outcome))
    for d in c.curves:
        moved = d.verdict == MOVED
        text = f"{d.curve.key}: {moved_text(outcome, d)}" if moved else ""
        case(d.curve.key, "failure" if moved else "", text)
    if outcome.notes:
        ET.SubElement(suite, "system-out").text = _clean("\n".join(outcome.notes))
    return counts
