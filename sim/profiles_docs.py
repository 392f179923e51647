"""The table of releases and switches for docs/fidelity.md; a test compares it with the page."""

from __future__ import annotations

from sim.profiles import VERSIONS
from sim.switches import SWITCHES, release_key


def releases_table() -> str:
    """One row for each change of a rule, by release, in Markdown."""
    rows = ["| release | switch | vLLM pull request | effect |", "| --- | --- | --- | --- |"]
    first = next(iter(VERSIONS))
    for switch in SWITCHES:
        onset = switch.onsets[0]
        rows.append(f"| {first} | `{switch.name}: {onset.value}` | - | {_effect(switch.name, onset.value)} |")
    changes = [(o, s) for s in SWITCHES for o in s.onsets[1:]]
    for onset, switch in sorted(changes, key=lambda pair: release_key(pair[0].release)):
        pull = f"#{onset.pull}" if onset.pull else "not found"
        effect = _effect(switch.name, onset.value)
        rows.append(f"| {onset.release} | `{switch.name}: {onset.value}` | {pull} | {effect} |")
    return "\n".join(rows) + "\n"


def _effect(name: str, value: str) -> str:
    switch = next(s for s in SWITCHES if s.name == name)
    meaning = switch.values[value]
    return f"{switch.effect} Here: {meaning}." if meaning != value else switch.effect
