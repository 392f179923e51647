"""What a hit curve is made of: a trace file, or the workload of a config; and pools of GPUs to mark on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.curve.distances import Rule
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.resolve import Resolved
    from workloads.requests import Workload

_YAML = (".yaml", ".yml")
_DEFAULT_BLOCK = 16
#: For a trace without a config: no request is simulated, so any length that every pool holds will do.
_MARK_CONFIG = """\
model: "{model}"
gpu: "{gpu}"
engine: {{max_model_len: 2048}}
workload: {{kind: batch, num_requests: 1}}
"""
_FLEET = (
    "the curve is of one cache that sees every request; the pool is that of one of {replicas} replicas, which"
    " sees its share of them"
)
_HYBRID = "no pool of {model} is marked: layers of several kinds share its blocks, which is not one LRU cache"


@dataclass(frozen=True)
class Asked:
    """Options of the command line that say how the source is read."""

    overrides: Sequence[str] = ()
    seed: int | None = None
    trace_format: str = "auto"
    hash_block_size: int | None = None
    max_requests: int | None = None


@dataclass(frozen=True)
class Source:
    """A workload with what its file says about the curve.

    Attributes:
        name: shown in titles.
        workload: the requests.
        block_size: of the config's engine; of a Mooncake trace's hash ids; else 16.
        rule: "vllm" for a config, "lru" for a trace.
        model, gpu: names in the config, or None.
        config: the config file, or None for a trace.
    """

    name: str
    workload: Workload
    block_size: int
    rule: Rule
    model: str | None = None
    gpu: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Pool:
    """A pool to mark: usable blocks of the curve's block size, and where it comes from.

    Attributes:
        model: or the config's name where there is none.
        place: such as "1 x h100-80gb"; empty: no GPU is named.
        blocks: usable blocks, of the curve's size.
        token_bytes: bytes of a token's KV over all GPUs of the engine; None: unknown.
        how: "given", "estimated" or "kv_cache_memory_bytes".
    """

    model: str
    place: str
    blocks: int
    token_bytes: float | None
    how: str

    @property
    def label(self) -> str:
        """Such as "llama-3.1-8b on 1 x h100-80gb"."""
        return f"{self.model} on {self.place}" if self.place else self.model


def is_config(path: str) -> bool:
    """Whether a source is a kvpool config, by its ending."""
    return Path(path).suffix.lower() in _YAML


def read_source(path: str, asked: Asked) -> Source:
    """Read a trace file or a config.

    Raises:
        InputError: it can't be used, or an option does not apply to it.
    """
    return _read_config(path, asked) if is_config(path) else _read_trace(path, asked)


def _read_config(path: str, asked: Asked) -> Source:
    from sim.runner import check

    trace_options = {
        "--format": asked.trace_format != "auto",
        "--hash-block-size": asked.hash_block_size is not None,
        "--max-requests": asked.max_requests is not None,
    }
    for name, given in trace_options.items():
        if given:
            raise InputError(
                "this option is for trace files, and a config was given",
                name,
                hint="use --set, as in --set workload.max_requests=1000",
            )
    resolved, workload = check(path, asked.overrides, asked.seed)
    return Source(
        name=resolved.name,
        workload=workload,
        block_size=resolved.engine.block_size,
        rule="vllm",
        model=resolved.config["model"],
        gpu=resolved.gpu.name if resolved.gpu else None,
        config=path,
    )


def _read_trace(path: str, asked: Asked) -> Source:
    from workloads.errors import WorkloadError
    from workloads.readers import read_trace
    from workloads.readers.options import ReadOptions

    for name, given in (("--set", bool(asked.overrides)), ("--seed", asked.seed is not None)):
        if given:
            raise InputError("this option is for configs (.yaml), and a trace was given", name)
    options: dict[str, Any] = {"max_requests": asked.max_requests}
    if asked.hash_block_size is not None:
        options["hash_block_size"] = asked.hash_block_size
    try:
        workload = read_trace(path, asked.trace_format, ReadOptions(**options))
    except WorkloadError as e:
        raise InputError(e.message, e.file, e.line, e.column) from e
    used = workload.source.get("options", {}).get("hash_block_size", _DEFAULT_BLOCK)
    name = Path(path).name
    for ending in (".gz", ".jsonl", ".csv", ".json", ".parquet"):
        name = name.removesuffix(ending)
    return Source(name, workload, int(used), "lru")


def _one_full_group(resolved: Resolved) -> bool:
    """Whether the pool serves one group of full-attention layers, so that its size is that of one cache."""
    groups = resolved.engine.kv_cache_groups
    return len(groups) == 1 and groups[0].type == "full"


def _pool(resolved: Resolved, model: str, block_size: int) -> Pool:
    engine = resolved.engine
    tensor_parallel = int(resolved.config["engine"]["tensor_parallel_size"])
    total = resolved.block_bytes_total
    return Pool(
        model=model,
        place=f"{tensor_parallel} x {resolved.gpu.name}" if resolved.gpu else "",
        blocks=engine.usable_blocks * engine.block_size // block_size,
        token_bytes=None if total is None else total / engine.block_size,
        how=resolved.pool.how,
    )


def pools(
    source: Source, asked: Asked, model: str | None, gpus: Sequence[str], block_size: int
) -> tuple[list[Pool], list[str]]:
    """The pools to mark, and notes on those that can't be.

    A config's own pool comes first; each GPU named gives the pool that the model would have there.

    Raises:
        InputError: an unknown model or GPU; GPUs without a model.
    """
    import tempfile

    from sim.config import load_config
    from sim.resolve import resolve

    found: list[Pool] = []
    notes: list[str] = []
    if source.config is not None and model is None and not gpus:
        resolved = resolve(load_config(source.config, asked.overrides, asked.seed))
        if resolved.fleet is not None:
            notes.append(_FLEET.format(replicas=resolved.fleet.replicas))
        if not _one_full_group(resolved):
            return [], [*notes, _HYBRID.format(model=source.model or source.name)]
        return [_pool(resolved, source.model or source.name, block_size)], notes
    model = model or source.model
    if model is None:
        if gpus:
            raise InputError("which model on these GPUs?", "--gpu", hint="give --model too")
        return found, notes
    if not gpus:
        from sim.gpus import GPUS

        gpus = sorted(GPUS)
    with tempfile.TemporaryDirectory() as folder:
        for gpu in gpus:
            if source.config is not None:
                path, overrides = source.config, [*asked.overrides, f"model={model}", f"gpu={gpu}"]
                overrides.append("engine.num_gpu_blocks=auto")
            else:
                path, overrides = str(Path(folder) / "pool.yaml"), []
                Path(path).write_text(_MARK_CONFIG.format(model=model, gpu=gpu), encoding="utf-8")
            try:
                resolved = resolve(load_config(path, overrides))
            except InputError as e:
                if "kv_cache_groups" in e.message:
                    return [], [*notes, _HYBRID.format(model=model)]
                if "leaves no room" not in e.message:
                    names = {"model": "--model", "gpu": "--gpu"}
                    option = next((o for k, o in names.items() if f"unknown {k}" in e.message), "--gpu")
                    raise InputError(e.message, option, hint=e.hint) from e
                notes.append(e.message)
                continue
            if not _one_full_group(resolved):
                return [], [*notes, _HYBRID.format(model=model)]
            found.append(_pool(resolved, model, block_size))
    found.sort(key=lambda pool: (pool.blocks, pool.label))
    return found, notes
