"""The two sides of a survey: real releases, or the simulator under the rules of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.engine_settings import EngineSettings
from sim.errors import InputError
from sim.profiles import LAST_RELEASE, default_retention, missing_keys, releases, rules_of
from sim.switches import SWITCHES, release_key
from validation.fuzz_cases import Case
from validation.logical import LogicalRequest
from validation.record import record
from validation.releases import Worker
from validation.steplog import Recording

_DEFAULTS = EngineSettings()


@dataclass(frozen=True)
class Side:
    """One of the two things compared.

    Attributes:
        name: as shown.
        release: "0.MINOR" whose rules or code it has; a newer one than the table knows is the table's last.
        run: records settings and requests.
        changed: switches that differ from the release (simulator only).
    """

    name: str
    release: str
    run: Callable[[EngineSettings, Sequence[LogicalRequest]], Recording]
    changed: tuple[tuple[str, str], ...] = ()

    def record(self, case: Case) -> Recording:
        """Record a case. Raises InputError if it can't be run."""
        return self.run(case.settings, case.requests)


def parse_switches(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """`name=value` texts as pairs. Raises InputError for unknown names and values, with the nearest one."""
    from sim.errors import did_you_mean

    pairs = []
    for text in texts:
        name, _, value = text.partition("=")
        switch = next((s for s in SWITCHES if s.name == name), None)
        if switch is None:
            names = [s.name for s in SWITCHES]
            hint = did_you_mean(name, names) or f"one of {', '.join(names)}"
            raise InputError(f"unknown switch '{name}'", "--switch", hint=hint)
        if value not in switch.values:
            hint = did_you_mean(value, list(switch.values)) or f"one of {', '.join(switch.values)}"
            raise InputError(f"switch {name}: unknown value '{value}'", "--switch", hint=hint)
        pairs.append((name, value))
    return tuple(pairs)


def _known(version: str) -> str:
    minor = ".".join(version.split(".")[:2])
    return minor if minor in releases() else LAST_RELEASE


def _simulator(release: str, changed: tuple[tuple[str, str], ...]) -> Side:
    if release not in releases():
        raise InputError(f"no rules of vLLM {release}", hint=f"known: {releases()[0]} to {LAST_RELEASE}")
    name = f"sim:{release}" + "".join(f" {n}={v}" for n, v in changed)
    return Side(name, release, lambda s, r: record("sim", s, r), changed)


@contextmanager
def open_sides(
    a: str, b: str, folder: Path | None, switches: tuple[tuple[str, str], ...] = ()
) -> Iterator[tuple[Side, Side]]:
    """Both sides, with a process for each real release while the context lasts.

    `sim` is the simulator under the other side's release, `sim:0.25` under a given one; `switches` change
    the simulator. Raises InputError for unknown names and releases that are not at hand.
    """
    if a == b == "sim":
        raise InputError("two times sim: name the release of at least one, as sim:0.25")
    if switches and not (a.startswith("sim") or b.startswith("sim")):
        raise InputError("a switch can be changed on the simulator only", "--switch")
    with ExitStack() as stack:
        real: dict[str, Side] = {}
        for name in (a, b):
            kind, _, release = name.partition(":")
            if kind == "sim":
                if release:
                    real[name] = _simulator(release, switches)
                continue
            worker = stack.enter_context(Worker(name, folder))
            real[name] = Side(worker.version, _known(worker.version), worker.record)
        for name, other in ((a, b), (b, a)):
            if name == "sim":
                real[name] = _simulator(real[other].release, switches)
        yield real[a], real[b]


def adapt(case: Case, side: Side, other: Side, by_default: bool) -> Case:
    """The case as one side can have it.

    Keys that both releases have are the same on both sides; one that the older release lacks has its default
    in the newer. by_default: the retention interval is left to each release.
    """
    older = min(side.release, other.release, key=release_key)
    changes: dict[str, Any] = {"vllm": side.release, "switches": side.changed}
    for name, later in missing_keys(older).items():
        has = release_key(side.release) >= release_key(later.since)
        changes[name] = getattr(_DEFAULTS, name) if has else later.absent
    if by_default or "prefix_cache_retention_interval" in missing_keys(older):
        rules, s = rules_of(side.release, side.changed), case.settings
        kinds = {group.type for group in s.kv_cache_groups}
        changes["prefix_cache_retention_interval"] = default_retention(
            rules, s.speculative_method, "mamba" in kinds and len(kinds) > 1
        )
    return replace(case, settings=replace(case.settings, **changes))
