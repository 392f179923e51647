"""The KV-cache specs of a model's layers from a release's own model classes, built on the meta device: no
weights, no GPU.

vLLM's CPU platform stands in for CUDA. What it decides otherwise than the CUDA platform is put back here:
block sizes, the type of recurrent states, prefix caching by default, the hybrid KV-cache manager. vllm and
torch are imported inside functions only; `validation.sizing.pretend` has what makes a release run so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.sizing.layers import Backend
from validation.sizing import pretend, release

#: The text model inside a model that also sees images: its class alone is built.
_TEXT_CLASSES = {"gemma3": "Gemma3ForCausalLM", "llama4": "Llama4ForCausalLM"}


@dataclass(frozen=True)
class Question:
    """One model under one set of arguments; the fields are arguments of vLLM.

    `mamba_cache_mode` None: what the release takes by default.
    """

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
    mamba_cache_mode: str | None = None


@dataclass
class RealLayers:
    """A release's answer.

    Attributes:
        config: VllmConfig, after all adjustments.
        specs: layer name -> KVCacheSpec.
        engine: what the release made of the arguments, as `engine_facts`.
        parameter_bytes: of the tensors on one rank; 0 where the model had to be changed.
        drafter_bytes: the same of the drafter, without what it shares with the model; 0 without one.
    """

    config: Any
    specs: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    parameter_bytes: int = 0
    drafter_bytes: int = 0


class Refused(Exception):
    """The release does not take the model with these arguments; the text is its own."""


class NotBuilt(Exception):
    """The release's classes can't be built here; the text says why."""


#: Width of gpt-oss's experts where they are split: vLLM's CPU kernels don't take 2880 / 4.
_EXPERTS_ON_CPU = 3072


def hf_config(path: Path, tensor_parallel: int = 1) -> dict[str, Any]:
    """A shipped config as vLLM's file: without our notes and quantization, the text model only."""
    data = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if not k.startswith("_")}
    data.pop("quantization_config", None)
    model_type = data.get("model_type")
    if model_type == "gpt_oss" and tensor_parallel > 1:
        data["intermediate_size"] = _EXPERTS_ON_CPU
    if model_type == "mamba2":
        # 0.14 to 0.18 look for it
        data.setdefault("num_attention_heads", 0)
    # the published values of keys that the shipped files leave out, and old releases look for
    if model_type == "gemma2":
        data.setdefault("hidden_act", "gelu_pytorch_tanh")
    if str(model_type).startswith("deepseek"):
        data = {"n_group": 1, "topk_group": 1, **data}
    if isinstance(data.get("text_config"), dict) and model_type in _TEXT_CLASSES:
        text = data["text_config"]
        return {**text, "architectures": [_TEXT_CLASSES[model_type]], "torch_dtype": data["torch_dtype"]}
    return data


def real_layers(
    q: Question, config_file: Path, folder: Path, backend: Backend | None, drafter_file: Path | None = None
) -> RealLayers:
    """Build the model on the meta device and ask each of its layers.

    Args:
        q: the arguments.
        config_file: the shipped config.json.
        folder: an existing empty folder, which becomes the model.
        backend: the attention backend of the GPU in question, for the block sizes of its kernels.
        drafter_file: config.json of a drafter that has one.

    Raises:
        Refused: the release refuses the model with these arguments.
        NotBuilt: its classes can't be built here.
    """
    pretend.prepare()
    if backend is not None:
        pretend.kernel_blocks(backend.sizes, backend.multiples)
    with _failures():
        config = _config(q, config_file, folder, drafter_file)
        _start(config)
    with pretend.gpu(q.capability):
        with _refusals(), _making(config, q.tensor_parallel_size):
            _resolve(q, config)
        kept = release.cache_values(config)
        with _failures(), _making(config, q.tensor_parallel_size):
            model, drafter = _build(q, config)
        with _refusals(), _making(config, q.tensor_parallel_size):
            # making the drafter's configuration from the model's set some of its parts again
            release.set_cache(config, kept)
            _scheduler(q, config)
            release.update_block_size(config)
            specs = release.layer_specs(config)
    changed = q.model.startswith("gpt-oss") and q.tensor_parallel_size > 1
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return RealLayers(
        config,
        specs,
        release.engine_facts(config),
        0 if changed else size,
        _own_bytes(q, config, drafter),
    )


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except release.REFUSALS as why:
        raise Refused(" ".join(str(why).split())[:200] or type(why).__name__) from why


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except Exception as why:
        raise NotBuilt(f"{type(why).__name__}: {' '.join(str(why).split())[:200]}") from why


@contextmanager
def _making(config: Any, tensor_parallel: int) -> Iterator[None]:
    from vllm.config import set_current_vllm_config

    with set_current_vllm_config(config), _ranks(config, tensor_parallel):
        yield


def _build(q: Question, config: Any) -> tuple[Any, Any]:
    import torch
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    dtype = config.model_config.dtype
    with pretend.missing_kernels(), set_default_torch_dtype(dtype), torch.device("meta"):
        return initialize_model(vllm_config=config), _drafter(q, config)


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
    said = EngineArgs(
        model=str(folder),
        tokenizer=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        # what the user says is set where the release's adjustments run again
        enable_prefix_caching=None if q.enable_prefix_caching is None else False,
        max_num_batched_tokens=q.max_num_batched_tokens,
        max_num_seqs=min(256, q.max_num_batched_tokens),
        disable_hybrid_kv_cache_manager=q.disable_hybrid_kv_cache_manager or None,
        num_gpu_blocks_override=q.num_gpu_blocks_override,
        **args,
    )
    config = said.create_engine_config()
    # the release's own default stands in the arguments now; the CPU platform turns it off for some models
    config.cache_config.enable_prefix_caching = _caching(q, said, config)
    return config


def _caching(q: Question, said: Any, config: Any) -> bool:
    if q.enable_prefix_caching is not None:
        return q.enable_prefix_caching
    chosen = said.enable_prefix_caching
    return bool(config.model_config.is_prefix_caching_supported if chosen is None else chosen)


def _resolve(q: Question, config: Any) -> None:
    """The release's adjustments once more, from the question's arguments and without the CPU platform."""
    values = {
        "block_size": q.block_size or release.unset_block_size(),
        "user_specified_block_size": q.block_size is not None,
        "cache_dtype": q.kv_cache_dtype,
        "mamba_cache_mode": q.mamba_cache_mode or "none",
    }
    release.set_cache(config, release.FRESH_CACHE | values)
    # some releases take no draft model with it; the planner gets the question's
    config.scheduler_config.async_scheduling = False
    config.scheduler_config.max_num_batched_tokens = q.max_num_batched_tokens
    config.model_config.config_updated = False
    config.try_verify_and_update_config()
    pretend.cuda_block_size(config, q.capability)


def _scheduler(q: Question, config: Any) -> None:
    config.scheduler_config.async_scheduling = q.async_scheduling
    config.scheduler_config.max_num_batched_tokens = q.max_num_batched_tokens


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
