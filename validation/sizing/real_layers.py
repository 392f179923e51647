"""The KV-cache specs of a model's layers from vLLM's own model classes, built on the meta device: no
weights, no GPU.

vLLM's CPU platform stands in for CUDA. What it decides otherwise than the CUDA platform is put back here:
block sizes of the attention kernels, the type of recurrent states, prefix caching and chunked prefill by
default. vllm and torch are imported inside functions only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: The text model inside a model that also sees images: its class alone is built.
_TEXT_CLASSES = {"gemma3": "Gemma3ForCausalLM", "llama4": "Llama4ForCausalLM"}


@dataclass(frozen=True)
class Question:
    """One model under one set of arguments; the fields are arguments of vLLM."""

    model: str
    tensor_parallel_size: int = 1
    block_size: int | None = None
    kv_cache_dtype: str = "auto"
    enable_prefix_caching: bool | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int = 8192
    async_scheduling: bool = True
    disable_hybrid_kv_cache_manager: bool = False
    capability: int = 90
    num_gpu_blocks_override: int | None = None
    available_bytes: int = 20 * 2**30
    speculative_method: str | None = None
    speculative_model: str | None = None
    num_speculative_tokens: int = 0


@dataclass
class RealLayers:
    """vLLM's answer: specs by layer name, its configuration, and bytes of the parameters on one GPU.

    Attributes:
        config: VllmConfig, after all adjustments.
        specs: layer name -> KVCacheSpec.
        parameter_bytes: of the tensors on one rank; 0 where the model had to be changed.
        drafter_bytes: the same of the drafter, without what it shares with the model; 0 without one.
    """

    config: Any
    specs: dict[str, Any] = field(default_factory=dict)
    parameter_bytes: int = 0
    drafter_bytes: int = 0


#: Width of gpt-oss's experts where they are split: vLLM's CPU kernels don't take 2880 / 4.
_EXPERTS_ON_CPU = 3072


def hf_config(path: Path, tensor_parallel: int = 1) -> dict[str, Any]:
    """A shipped config as vLLM's file: without our notes and quantization, the text model only."""
    data = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if not k.startswith("_")}
    data.pop("quantization_config", None)
    model_type = data.get("model_type")
    if model_type == "gpt_oss" and tensor_parallel > 1:
        data["intermediate_size"] = _EXPERTS_ON_CPU
    if isinstance(data.get("text_config"), dict) and model_type in _TEXT_CLASSES:
        text = data["text_config"]
        return {**text, "architectures": [_TEXT_CLASSES[model_type]], "torch_dtype": data["torch_dtype"]}
    return data


def real_layers(
    q: Question, config_file: Path, folder: Path, kernel_blocks: list[Any], drafter_file: Path | None = None
) -> RealLayers:
    """Build the model on the meta device and ask each of its layers.

    Args:
        q: the arguments.
        config_file: the shipped config.json.
        folder: an existing empty folder, which becomes the model.
        kernel_blocks: block sizes of the attention kernels on the GPU in question, as `supported_sizes`
            makes them.
        drafter_file: config.json of a drafter that has one.
    """
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms.interface import Platform
    from vllm.utils.torch_utils import set_default_torch_dtype
    from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

    config = _config(q, config_file, folder, drafter_file)
    _start(config)
    with (
        set_current_vllm_config(config),
        _ranks(config, q.tensor_parallel_size),
        _kernel_blocks(kernel_blocks),
    ):
        with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
            model = initialize_model(vllm_config=config)
            drafter = _drafter(q, config)
        # Making the drafter's configuration from the model's set some of its parts again.
        _arguments(q, config)
        # The CPU platform has an adjustment of its own; this is that of CUDA.
        Platform.update_block_size_for_backend.__func__(Platform, config)
        specs = get_kv_cache_spec(config)
    changed = q.model.startswith("gpt-oss") and q.tensor_parallel_size > 1
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return RealLayers(config, specs, 0 if changed else size, _own_bytes(q, config, drafter))


def _drafter(q: Question, config: Any) -> Any:
    """The drafter's layers behind the model's, as its proposer loads it; None without one."""
    if q.speculative_method is None:
        return None
    from vllm.config.utils import replace
    from vllm.model_executor.model_loader.utils import initialize_model

    shape = config.speculative_config.draft_model_config
    if q.speculative_method == "draft_model":
        # DraftModelProposer._create_draft_vllm_config: the drafter takes the model's place
        own = replace(config, quant_config=None, model_config=shape)
        return initialize_model(vllm_config=own, prefix="draft_model")
    return initialize_model(vllm_config=config, model_config=shape)


def _own_bytes(q: Question, config: Any, drafter: Any) -> int:
    """Bytes of a drafter's tensors on one rank, without the tables over the vocabulary that it shares."""
    if drafter is None:
        return 0
    shared: tuple[str, ...] = ()
    if q.speculative_method != "draft_model":
        hidden = config.speculative_config.draft_model_config.hf_config.hidden_size
        shared = ("embed_tokens.weight",) if hidden == config.model_config.get_hidden_size() else ()
        tables = config.speculative_config.draft_model_config.hf_config
        if (getattr(tables, "draft_vocab_size", None) or tables.vocab_size) == tables.vocab_size:
            shared = (*shared, "lm_head.weight", "shared_head.head.weight")
    kept = [p for name, p in drafter.named_parameters() if not name.endswith(shared)]
    return sum(p.numel() * p.element_size() for p in kept)


def _speculative(q: Question, folder: Path, drafter_file: Path | None) -> dict[str, Any]:
    """The argument for a drafter, whose config is written beside the model's."""
    if q.speculative_method is None:
        return {}
    said: dict[str, Any] = {
        "method": q.speculative_method,
        "num_speculative_tokens": q.num_speculative_tokens,
    }
    if drafter_file is not None:
        place = folder / "drafter"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(hf_config(drafter_file)))
        said["model"] = str(place)
    return {"speculative_config": said}


def _config(q: Question, config_file: Path, folder: Path, drafter_file: Path | None) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    (folder / "config.json").write_text(json.dumps(hf_config(config_file, q.tensor_parallel_size)))
    args: dict[str, Any] = _speculative(q, folder, drafter_file)
    if q.max_model_len is not None:
        args["max_model_len"] = q.max_model_len
    caching = q.enable_prefix_caching
    if caching is None:
        # vLLM's CPU platform turns it off for MLA; its default on CUDA is a property of the model.
        caching = _caches_by_default(folder)
    config = EngineArgs(
        model=str(folder),
        tokenizer=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        block_size=q.block_size or 16,
        enable_prefix_caching=caching,
        max_num_batched_tokens=q.max_num_batched_tokens,
        max_num_seqs=min(256, q.max_num_batched_tokens),
        disable_hybrid_kv_cache_manager=q.disable_hybrid_kv_cache_manager or None,
        num_gpu_blocks_override=q.num_gpu_blocks_override,
        **args,
    ).create_engine_config()
    config.cache_config.enable_prefix_caching = caching
    _arguments(q, config)
    return config


def _arguments(q: Question, config: Any) -> None:
    """The question's arguments where vLLM's CPU platform takes others."""
    cache, scheduler = config.cache_config, config.scheduler_config
    cache.user_specified_block_size = q.block_size is not None
    cache.block_size = q.block_size or 16
    cache.cache_dtype = q.kv_cache_dtype
    cache.mamba_ssm_cache_dtype = "auto"
    cache.kv_cache_layout = "LBNHC"
    scheduler.async_scheduling = q.async_scheduling
    scheduler.max_num_batched_tokens = q.max_num_batched_tokens
    scheduler.disable_hybrid_kv_cache_manager = q.disable_hybrid_kv_cache_manager


def _caches_by_default(folder: Path) -> bool:
    from vllm.config import ModelConfig

    model = ModelConfig(model=str(folder), tokenizer=str(folder), skip_tokenizer_init=True)
    return bool(model.is_prefix_caching_supported)


def _start(config: Any) -> None:
    """vLLM's process groups, of one process, once."""
    import socket

    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state

    if parallel_state.model_parallel_is_initialized():
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
        initialize_model_parallel(1, 1)
    # Models with experts ask for this group, which vLLM makes for them only.
    parallel_state._EP = parallel_state._TP


@contextmanager
def _ranks(config: Any, size: int) -> Iterator[None]:
    """Pretend to be the first of `size` tensor-parallel ranks: layers are made, and never talk to another."""
    from vllm.distributed import parallel_state

    group = parallel_state._TP
    before, group.world_size = group.world_size, size
    config.parallel_config.tensor_parallel_size = size
    try:
        yield
    finally:
        group.world_size = before


def supported_sizes(sizes: tuple[int, ...], multiples: bool) -> list[Any]:
    """Block sizes of kernels in vLLM's terms."""
    from vllm.v1.attention.backend import MultipleOf

    return [MultipleOf(sizes[0])] if multiples else list(sizes)


@contextmanager
def _kernel_blocks(sizes: list[Any]) -> Iterator[None]:
    """The CPU's attention backends with the block sizes of a GPU's kernels."""
    from vllm.v1.attention.backend import AttentionBackend
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    changed: list[tuple[type, Any, Any]] = []
    for member in ("CPU_ATTN", "CPU_MLA"):
        if member in AttentionBackendEnum.__members__:
            cls = AttentionBackendEnum[member].get_class()
            for name, new in (
                ("get_supported_kernel_block_sizes", staticmethod(lambda kv_cache_spec=None: sizes)),
                ("get_preferred_block_size", AttentionBackend.__dict__["get_preferred_block_size"]),
                ("supports_block_size", AttentionBackend.__dict__["supports_block_size"]),
            ):
                changed.append((cls, name, cls.__dict__.get(name)))
                setattr(cls, name, new)
    try:
        yield
    finally:
        for cls, name, old in reversed(changed):
            if old is None:
                delattr(cls, name)
            else:
                setattr(cls, name, old)
