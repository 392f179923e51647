"""The memory budget of one GPU, as text for a terminal and as plain data."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sim.config import load_config
from sim.config_yaml import Document, Place, Problem, to_input_errors
from sim.engine_checks import check_settings
from sim.engine_settings import EngineSettings
from sim.errors import raise_all
from sim.gpus import GIB, Gpu, find_gpu
from sim.models import ModelShape
from sim.resolve import load_drafter, load_shape
from sim.resolve_engine import engine_settings
from sim.serve_args import ServeSource, serve_edit
from sim.serve_args.stand_in import NOTE
from sim.sizing.budget import estimated_parts
from sim.sizing.groups import Group
from sim.sizing.plan import PoolPlan
from sim.sizing.pool import PoolSize
from sim.sizing.specs import unread_share

WIDTH = 60
#: Parts of the budget in the order in which they are shown: key, label, letter of the bar.
PARTS = (
    ("weights", "weights", "W"),
    ("drafter", "drafter", "D"),
    ("activations", "activations", "A"),
    ("other", "CUDA, NCCL", "o"),
    ("cuda_graphs", "CUDA graphs", "g"),
    ("kv_cache", "KV cache", "#"),
    ("not_requested", "left to others", "."),
)


@dataclass(frozen=True)
class Budget:
    """A resolved engine with its model's memory.

    Attributes:
        name: of the config.
        model, gpu: `gpu` None if it is not known.
        tensor_parallel: GPUs over which each layer is split.
        utilization: share of the GPU that vLLM may use.
        settings: the engine.
        pool: its size and plan.
        parts: bytes by the keys of `PARTS`; {} if the GPU is not known.
        quantization: of the weights, by the engine's arguments or the checkpoint.
        drafter: of speculative decoding, with layers of its own; None without one.
    """

    name: str
    model: ModelShape
    gpu: Gpu | None
    tensor_parallel: int
    utilization: float
    settings: EngineSettings
    pool: PoolSize
    parts: dict[str, int]
    quantization: str | None
    drafter: ModelShape | None = None

    @property
    def plan(self) -> PoolPlan:
        assert self.pool.plan is not None
        return self.pool.plan

    @property
    def unread(self) -> float:
        """Share of a longest request's slots that lie outside the windows of layers that keep all tokens."""
        members = [m for g in self.plan.groups for m in g.members]
        kept = any(m.is_full and (m.sliding_window or m.attention_chunk_size) for m in members)
        if not kept or self.pool.layout is None:
            return 0.0
        return unread_share(self.pool.layout.specs, self.plan.limits.max_model_len)


def budget_of(
    config: str | None, source: ServeSource, overrides: Sequence[str] = (), model: str | None = None
) -> Budget:
    """The budget of a config, of vLLM's options, or of a model and a GPU.

    Raises:
        InputError: what is wrong with them; a config without a model.
    """

    def name_model(document: Document) -> None:
        if model is not None:
            document.data["model"] = model
            document.keys["model",] = document.values["model",] = Place(None, None, "--model")

    before = list(source.notes)
    loaded = load_config(config, overrides, None, [serve_edit(source), name_model])
    # The workload does not matter here, so neither does that a default one stands in.
    source.notes[:] = [*before, *(n for n in source.notes if not n.startswith(NOTE))]
    shape = load_shape(loaded)
    problems: list[Problem] = []
    if shape is None:
        hint = "name one with --model, or in the config"
        problems.append(Problem(("model",), "the memory budget needs a model", hint))
    raise_all(to_input_errors(problems, loaded.document))
    assert shape is not None
    given = loaded.config.gpu
    gpu = find_gpu(given) if isinstance(given, str) else given
    defaults = loaded.config.engine.release_defaults(shape.is_hybrid)
    engine = loaded.config.engine.model_copy(update=defaults)
    drafter = load_drafter(loaded, shape)
    settings, pool = engine_settings(engine, shape, gpu, problems, drafter)
    if settings is None or pool is None or pool.plan is None:
        raise_all(to_input_errors(problems, loaded.document))
        raise AssertionError("an engine that can't be resolved has problems")
    raise_all(to_input_errors(check_settings(settings, ("engine",)), loaded.document))
    parts: dict[str, int] = {}
    if gpu is not None:
        parts = estimated_parts(
            shape,
            gpu,
            tensor_parallel=engine.tensor_parallel_size,
            utilization=engine.gpu_memory_utilization,
            quantization=engine.quantization,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_num_seqs=settings.max_num_seqs,
            cuda_graphs=engine.rules().graph_estimate == "on" and not engine.enforce_eager,
            drafter=drafter,
        )
        parts["kv_cache"] = pool.plan.available_bytes
        parts["not_requested"] = gpu.memory_bytes - parts.pop("requested")
    return Budget(
        loaded.name,
        shape,
        gpu,
        engine.tensor_parallel_size,
        engine.gpu_memory_utilization,
        settings,
        pool,
        parts,
        engine.quantization or (shape.quantization.method if shape.quantization else None),
        drafter,
    )


def padding_of(plan: PoolPlan) -> dict[str, float]:
    """Shares of the bytes of one request of `max_model_len` that hold nothing, by cause.

    "pages": padding inside pages (a state, or a page that was padded to the others' size); "layers": groups
    of fewer layers than the widest one, whose blocks are as large as its.
    """
    total = sum(plan.request_blocks) * plan.block_bytes
    if not total:
        return {"pages": 0.0, "layers": 0.0}
    pages = layers = 0
    for g, blocks in zip(plan.groups, plan.request_blocks, strict=True):
        pages += blocks * (g.block_bytes - g.content_bytes)
        layers += blocks * (plan.block_bytes - g.block_bytes)
    return {"pages": pages / total, "layers": layers / total}


def kind_text(group: Group) -> str:
    """The group's attention in words."""
    s = group.spec
    if s.kind == "sliding_window":
        return f"window of {s.sliding_window:,}"
    if s.kind == "chunked_local":
        return f"chunk of {s.attention_chunk_size:,}"
    if s.kind == "mamba":
        return "state" if s.mamba_cache_mode == "none" else "state, cached"
    if s.kind == "full" and s.sliding_window:
        return "full (has a window)"
    return {"mla": "latent (MLA)", "cross_attention": "cross", "full": "full"}[s.kind]


def how_text(budget: Budget) -> str:
    """Where the size of the pool comes from."""
    return {
        "given": "exact: engine.num_gpu_blocks",
        "kv_cache_memory_bytes": "exact: engine.kv_cache_memory_bytes",
        "estimated": "estimate: what is left",
    }[budget.pool.how]


def as_text(budget: Budget) -> str:
    """The budget as a table, with a bar."""
    plan, model = budget.plan, budget.model
    gpu = budget.gpu.name if budget.gpu else "a GPU that is not named"
    split = "" if budget.tensor_parallel == 1 else f" x {budget.tensor_parallel}"
    out = [f"{model.name} on {gpu}{split}: memory of each GPU", ""]
    out += _memory(budget)
    out += ["", *_groups(budget)]
    lost = padding_of(plan)
    out += ["", "  Of the bytes of one request of max_model_len"]
    out.append(f"    {100 * lost['pages']:6.2f} %  is padding inside pages (exact)")
    out.append(
        f"    {100 * lost['layers']:6.2f} %  is lost to groups of fewer layers than the widest (exact)"
    )
    if budget.unread:
        out.append(f"    {100 * budget.unread:6.2f} %  is kept, but out of the windows of its layers (exact)")
    out += ["", *_result(budget)]
    if model.notes:
        out.append("")
        for note in model.notes:
            out += textwrap.wrap(f"note: {note}", 78, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(out) + "\n"


def _memory(budget: Budget) -> list[str]:
    if budget.gpu is None:
        available = budget.plan.available_bytes
        return [f"  KV cache  {_gib(available)}   {how_text(budget)}"]
    requested = budget.gpu.memory_bytes - budget.parts["not_requested"]
    how = {
        "weights": f"estimate: {_params(budget.model, budget.quantization)}",
        "drafter": f"estimate: {_drafter(budget)}" if budget.drafter else "",
        "activations": f"estimate: {budget.settings.max_num_batched_tokens:,} tokens,"
        f" {budget.settings.max_num_seqs:,} sequences",
        "other": "estimate",
        "cuda_graphs": "estimate",
        "kv_cache": how_text(budget),
        "not_requested": f"exact: 1 - {budget.utilization:g}",
    }
    rows = [
        ("total", budget.gpu.memory_bytes, "as the CUDA driver reports it"),
        ("requested", requested, "exact"),
    ]
    shown = [part for part in PARTS if part[0] != "drafter" or budget.drafter]
    rows += [(label, budget.parts[key], how[key]) for key, label, _ in shown]
    letters = {label: letter for _, label, letter in PARTS}
    width = max(len(label) for label, _, _ in rows)
    lines = [f"  {letters.get(a, ' ')} {a:{width}}  {_gib(b)}   {c}" for a, b, c in rows]
    return [*lines, "", f"  |{bar(budget)}|"]


def bar(budget: Budget, width: int = WIDTH) -> str:
    """The GPU's memory as letters, each for the same number of bytes."""
    values = [(letter, max(0, budget.parts[key])) for key, _, letter in PARTS]
    total = sum(v for _, v in values)
    text, done = "", 0
    for letter, value in values:
        done += value
        text += letter * (round(width * done / total) - len(text))
    return text


def _params(model: ModelShape, quantization: str | None) -> str:
    return f"{model.num_params / 1e9:.2f} billion parameters, {quantization or model.dtype}"


def _drafter(budget: Budget) -> str:
    drafter = budget.drafter
    assert drafter is not None
    name = drafter.name
    if drafter is budget.model.mtp:
        name = f"{drafter.layers} MTP layer{'' if drafter.layers == 1 else 's'}"
    return f"{name}, {drafter.num_params / 1e9:.2f} billion"


def _groups(budget: Budget) -> list[str]:
    plan = budget.plan
    if not plan.groups:
        return ["  This model has no KV cache."]
    n = len(plan.groups)
    word = "group shares" if n == 1 else "groups share"
    out = [
        f"  {n} KV-cache {word} the pool; a block of it is {_bytes(plan.block_bytes)} (exact)",
        "",
        "     group               layers  block size       page  padding  blocks/request",
    ]
    for i, (g, blocks) in enumerate(zip(plan.groups, plan.request_blocks, strict=True)):
        pages = {m.page_bytes for m in g.members}
        page = _bytes(next(iter(pages))) if len(pages) == 1 else "unequal"
        padding = 1 - g.content_bytes / plan.block_bytes
        out.append(
            f"  {i:2}  {kind_text(g):19} {len(g.layers):6}  {g.spec.block_size:6,} tok"
            f"  {page:>9}  {100 * padding:5.2f} %  {blocks:14,}"
        )
    return out


def _result(budget: Budget) -> list[str]:
    plan = budget.plan
    out = [
        f"  num_gpu_blocks        {plan.num_blocks:,} (block 0 is the null block)",
        f"  GPU KV cache size     {plan.tokens:,} tokens",
        f"  Maximum concurrency   {plan.max_concurrency:.2f}x for {plan.limits.max_model_len:,} tokens per"
        f" request",
    ]
    if not plan.starts:
        longest = plan.longest
        what = f"with at most {longest:,} tokens it would" if longest else "not even a single token does"
        out.append(f"  vLLM WOULD NOT START: a request of max_model_len does not fit;\n    {what}")
    return out


def _gib(value: float) -> str:
    return f"{value / GIB:8.2f} GiB"


def _bytes(value: int) -> str:
    if value >= 2**20 and value % 2**18 == 0:
        return f"{value / 2**20:g} MiB"
    return f"{value / 2**10:g} KiB" if value >= 2**10 and value % 2**8 == 0 else f"{value:,} B"


def as_data(budget: Budget) -> dict[str, Any]:
    """The budget as plain data; bytes are of each GPU."""
    plan = budget.plan
    return {
        "model": budget.model.name,
        "gpu": budget.gpu.name if budget.gpu else None,
        "tensor_parallel_size": budget.tensor_parallel,
        "parameters": budget.model.num_params,
        "drafter": budget.drafter.name if budget.drafter else None,
        "drafter_parameters": budget.drafter.num_params if budget.drafter else 0,
        "memory_bytes": budget.gpu.memory_bytes if budget.gpu else None,
        "parts_bytes": budget.parts,
        "exact": {
            "kv_cache": budget.pool.how != "estimated",
            "weights": False,
            "drafter": False,
            "activations": False,
            "other": False,
            "cuda_graphs": False,
        },
        "pool_from": budget.pool.how,
        "block_size": budget.settings.block_size,
        "max_model_len": plan.limits.max_model_len,
        "max_num_batched_tokens": budget.settings.max_num_batched_tokens,
        "max_num_seqs": budget.settings.max_num_seqs,
        "block_bytes": plan.block_bytes,
        "num_gpu_blocks": plan.num_blocks,
        "kv_cache_size_tokens": plan.tokens,
        "max_concurrency": plan.max_concurrency,
        "starts": plan.starts,
        "longest_max_model_len": plan.longest,
        "padding_share": padding_of(plan),
        "unread_share": budget.unread,
        "groups": [
            {
                "kind": g.spec.kind,
                "layers": list(g.layers),
                "block_size": g.spec.block_size,
                "sliding_window": g.spec.sliding_window,
                "attention_chunk_size": g.spec.attention_chunk_size,
                "page_bytes": sorted({m.page_bytes for m in g.members}),
                "padding_share": 1 - g.content_bytes / plan.block_bytes,
                "blocks_per_request": blocks,
            }
            for g, blocks in zip(plan.groups, plan.request_blocks, strict=True)
        ],
        "notes": list(budget.model.notes),
    }


__all__ = ["Budget", "as_data", "as_text", "bar", "budget_of", "padding_of"]
