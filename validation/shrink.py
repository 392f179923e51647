"""Make a failing case smaller while it keeps failing.

Requests are dropped, shortened and made ordinary, settings put back to their defaults, greedily, until no
single change leaves the case failing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from sim.engine_settings import EngineSettings
from validation.fuzz_cases import Case, blocks_of_largest
from validation.logical import LogicalRequest

_DEFAULTS = EngineSettings()
#: Tried in this order; the pool and the limits that bound a case's size are handled apart.
_ORDINARY = (
    "async_scheduling",
    "policy",
    "arrival_time",
    "idle_steps",
    "prefix_cache_retention_interval",
    "long_prefill_token_threshold_adaptive",
    "long_prefill_token_threshold",
    "max_num_scheduled_tokens",
    "max_num_active_seqs",
    "watermark",
    "enable_chunked_prefill",
    "scheduler_reserve_full_isl",
    "enable_prefix_caching",
    "prefix_match_unit",
    "max_num_batched_tokens",
    "max_num_seqs",
)


def shrink(case: Case, fails: Callable[[Case], bool], max_tries: int = 600) -> Case:
    """The smallest case that was found, in at most `max_tries` calls of `fails`.

    `fails` must be true for `case` and says for a changed case whether it still shows the difference; a case
    that can't be run must count as not failing.
    """
    left = max_tries
    progress = True
    while progress and left > 0:
        progress = False
        for smaller in _smaller(case):
            left -= 1
            if fails(smaller):
                case, progress = smaller, True
                break
            if left <= 0:
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """Simpler cases, the biggest steps first. Every request still fits the pool alone."""
    for requests in _fewer(case.requests):
        yield _with(case, requests=requests)
    for i, request in enumerate(case.requests):
        for simpler in _simpler(request):
            yield _with(case, requests=(*case.requests[:i], simpler, *case.requests[i + 1 :]))
    for requests in _earlier(case.requests):
        yield _with(case, requests=requests)
    for name in _ORDINARY:
        default = getattr(_DEFAULTS, name)
        if getattr(case.settings, name) != default:
            yield _with(case, settings=replace(case.settings, **{name: default}))
    groups = case.settings.kv_cache_groups
    for i in range(len(groups) if len(groups) > 1 else 0):
        yield _with(case, settings=replace(case.settings, kv_cache_groups=groups[:i] + groups[i + 1 :]))
    smallest = 1 + blocks_of_largest(case.settings, case.requests)
    for blocks in (
        smallest,
        (smallest + case.settings.num_gpu_blocks) // 2,
        case.settings.num_gpu_blocks - 1,
    ):
        if smallest <= blocks < case.settings.num_gpu_blocks:
            yield _with(case, settings=replace(case.settings, num_gpu_blocks=blocks))


def _with(
    case: Case, settings: EngineSettings | None = None, requests: tuple[LogicalRequest, ...] | None = None
) -> Case:
    return Case(case.name, settings or case.settings, requests if requests is not None else case.requests)


def _fewer(requests: tuple[LogicalRequest, ...]) -> Iterator[tuple[LogicalRequest, ...]]:
    size = len(requests) // 2
    while size >= 1:
        for start in range(0, len(requests), size):
            rest = requests[:start] + requests[start + size :]
            if rest:
                yield rest
        size //= 2


def _simpler(request: LogicalRequest) -> Iterator[LogicalRequest]:
    prompt, output = request.prompt_token_ids, request.output_token_ids
    limit = request.max_tokens
    if limit is not None:
        yield replace(request, max_tokens=None)
    for length in (len(output) // 2, len(output) - 1):
        if 1 <= length < len(output):
            yield replace(request, output_token_ids=output[:length])
    for length in (len(prompt) // 2, len(prompt) - 1):
        if 1 <= length < len(prompt):
            yield replace(request, prompt_token_ids=prompt[:length])
    if request.cache_salt is not None:
        yield replace(request, cache_salt=None)
    if request.priority:
        yield replace(request, priority=0)


def _earlier(requests: tuple[LogicalRequest, ...]) -> Iterator[tuple[LogicalRequest, ...]]:
    """All at once, without the time before the first, and with each gap cut to one step."""
    first = min(r.arrival_step for r in requests)
    if any(r.arrival_step != first for r in requests):
        yield tuple(replace(r, arrival_step=0) for r in requests)
        steps = sorted({r.arrival_step for r in requests})
        dense = {step: i for i, step in enumerate(steps)}
        if any(dense[step] != step for step in steps):
            yield tuple(replace(r, arrival_step=dense[r.arrival_step]) for r in requests)
    if first:
        yield tuple(replace(r, arrival_step=r.arrival_step - first) for r in requests)
