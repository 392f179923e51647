"""From the `workload:` section and a seed to the requests."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.errors import WorkloadError
from workloads.requests import Workload
from workloads.spec import AnyClient
from workloads.spec.base import DEFAULT_VOCAB_SIZE
from workloads.spec.clients import Client, Mix, MixPart, Trace

if TYPE_CHECKING:
    from workloads.clients.base import Shared


def build(spec: AnyClient, seed: int, base_dir: str | Path | None = None) -> Workload:
    """Generate or read the requests of a workload section; the same spec and seed give the same bytes.

    Args:
        spec: a validated model of `workloads.spec`.
        seed: seed of everything random in it, >= 0.
        base_dir: folder where relative paths are looked for first; None: only in the working folder.

    Raises:
        WorkloadError: a file cannot be used, or no request comes out.
    """
    source: dict[str, Any] = {"kind": spec.kind, "spec": spec.model_dump(mode="json"), "seed": seed}
    if isinstance(spec, Trace):
        from workloads.clients.trace import load

        workload = load(spec, base_dir)
        return dataclasses.replace(workload, source={**workload.source, "spec": source["spec"]})

    import simpy

    from workloads.builder import WorkloadBuilder
    from workloads.clients import base

    env = simpy.Environment(initial_time=0)
    builder = WorkloadBuilder(vocab_size=spec.vocab_size or DEFAULT_VOCAB_SIZE)
    shared = base.Shared(env, builder, seed, base_dir, named=isinstance(spec, Mix))
    if isinstance(spec, Mix):
        _check_names([part.name for part in spec.clients])
        for part in spec.clients:
            _start_part(shared, part)
    else:
        _start(shared, spec.kind, spec)
    env.run()
    if len(builder) == 0:
        raise WorkloadError(
            f"workload {spec.kind}: no request comes out; raise duration, the rate or max_context"
        )
    shared.notes.extend(
        f"{name}: {count} sessions sent nothing, their first request is longer than max_context"
        for name, count in shared.empty_sessions.items()
    )
    source["notes"] = shared.notes
    if shared.salts:
        source["cache_salts"] = dict(sorted(shared.salts.items()))
    return builder.build(source)


def _start_part(shared: Shared, part: MixPart) -> None:
    if isinstance(part.client, Trace):
        from workloads.clients.trace import start

        start(shared, part.name, part.client, part.weight, part.start)
    else:
        _start(shared, part.name, part.client, part.weight, part.start)


def _start(shared: Shared, name: str, spec: Client, weight: float = 1.0, start_ns: int = 0) -> None:
    from workloads.clients import STARTERS
    from workloads.clients.base import Emitter

    import_module(STARTERS[spec.kind]).start(Emitter(shared, name, spec, weight, start_ns), spec)


def _check_names(names: list[str]) -> None:
    """Names whose segment ids would meet (by chance, one pair in two million)."""
    from workloads.clients.base import segment_base

    owner: dict[int, str] = {}
    for name in names:
        other = owner.setdefault(segment_base(name), name)
        if other != name:
            raise WorkloadError(f"clients {other!r} and {name!r} get the same token ids; rename one")
