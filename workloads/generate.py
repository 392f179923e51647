"""From the `workload:` section and a seed to the requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
    from workloads.spool import Spool


def build(spec: AnyClient, seed: int, base_dir: str | Path | None = None) -> Workload:
    """Generate or read the requests of a workload section; the same spec and seed give the same bytes.

    Args:
        spec: a validated model of `workloads.spec`.
        seed: seed of everything random in it, >= 0.
        base_dir: folder where relative paths are looked for first; None: only in the working folder.

    Raises:
        WorkloadError: a file cannot be used, or no request comes out.
    """
    if isinstance(spec, Trace):
        return _trace(spec, base_dir)
    shared = _shared(spec, seed, base_dir)
    shared.env.run()
    return shared.builder.build(_source(spec, seed, shared))


def build_or_spool(
    spec: AnyClient,
    seed: int,
    base_dir: str | Path | None,
    folder: Callable[[], Path],
    limit: int,
) -> Workload | Spool:
    """As `build`, but written to disk on the way where there are more than `limit` requests.

    Args:
        folder: makes an empty folder for the spool; not called where a Workload comes back.
        limit: requests.

    Raises:
        WorkloadError: as `build`.
        OSError: the spool can't be written.
    """
    from workloads.spool import CHUNK, SpoolWriter

    if isinstance(spec, Trace):
        from workloads.clients.trace import load_or_spool

        found = load_or_spool(spec, base_dir, folder, limit)
        return dataclasses.replace(found, source=_with_spec(found.source, spec))
    shared = _shared(spec, seed, base_dir)
    env, builder = shared.env, shared.builder
    infinity = float("inf")
    while env.peek() != infinity and builder.held <= limit:
        env.step()
    if builder.held <= limit:
        return builder.build(_source(spec, seed, shared))
    writer = SpoolWriter(
        folder(), clock=builder.clock, closed_loop=builder.closed_loop, vocab_size=builder.vocab_size
    )
    try:
        while env.peek() != infinity:
            env.step()
            if builder.held >= CHUNK:
                builder.spill(writer)
        builder.spill(writer)
        return writer.finish(_source(spec, seed, shared))
    finally:
        writer.close()


def _trace(spec: Trace, base_dir: str | Path | None) -> Workload:
    from workloads.clients.trace import load

    workload = load(spec, base_dir)
    return dataclasses.replace(workload, source=_with_spec(workload.source, spec))


def _with_spec(source: dict[str, Any], spec: Trace) -> dict[str, Any]:
    return {**source, "spec": spec.model_dump(mode="json")}


def _shared(spec: AnyClient, seed: int, base_dir: str | Path | None) -> Shared:
    """The clients of a section, started and yet to run."""
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
    elif not isinstance(spec, Trace):
        _start(shared, spec.kind, spec)
    return shared


def _source(spec: AnyClient, seed: int, shared: Shared) -> dict[str, Any]:
    """Provenance, when all clients are done."""
    source: dict[str, Any] = {"kind": spec.kind, "spec": spec.model_dump(mode="json"), "seed": seed}
    if len(shared.builder) == 0:
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
    return source


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
