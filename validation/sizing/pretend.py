"""A GPU that is not there: what a release asks its platform, its kernels and its registry while layers are
made.

Nothing is computed, so none of the compiled parts is needed. vllm and torch are imported inside functions
only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import ModuleType
from typing import Any
from unittest.mock import patch

from validation import vllm_release
from validation.sizing import release


@cache
def prepare() -> None:
    """Once in a process, before any model is made."""
    vllm_release.let_model_be_inspected()
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    from validation.sizing import stand_in

    # as in the process that asks: no process of its own for each model, and no file of what it found
    inspect = registry._ModelInfo.from_model_cls
    registry._LazyRegisteredModel.inspect_model_cls = lambda self: inspect(self.load_model_cls())
    platform = type(current_platform)
    platform.support_hybrid_kv_cache = classmethod(lambda cls: True)
    platform.get_attn_backend_cls = classmethod(
        lambda cls, *args, **values: stand_in.path_of(*args, **values)
    )


@contextmanager
def missing_kernels() -> Iterator[None]:
    """Compiled operators and kernels that are not there may be named while a model is made."""
    import torch

    namespace: Any = torch._ops._OpNamespace
    find = namespace.__getattr__

    def look_up(self: Any, name: str) -> Any:
        try:
            return find(self, name)
        except AttributeError:
            if name.startswith("__") or not self.name.startswith("_"):
                raise
            return _Missing()

    with ExitStack() as stack:
        stack.enter_context(patch.object(namespace, "__getattr__", look_up))
        latent = release.latent_layers()
        if hasattr(latent, "get_mla_prefill_backend"):
            from validation.sizing.stand_in import Kernel

            stack.enter_context(patch.object(latent, "get_mla_prefill_backend", lambda *_: Kernel))
        yield


class _Missing:
    """An operator that is named and never called."""

    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def kernel_blocks(sizes: tuple[int, ...], multiples: bool) -> None:
    """Block sizes of the attention kernels from now on; `multiples`: any multiple of the first."""
    from validation.sizing import stand_in

    stand_in.choose(sizes, multiples)


@contextmanager
def gpu(capability: int) -> Iterator[None]:
    """The platform says that it has a GPU of this compute capability times ten."""
    from vllm.platforms import current_platform
    from vllm.platforms.interface import DeviceCapability

    found = DeviceCapability(capability // 10, capability % 10)
    answer = classmethod(lambda cls, *args, **values: found)
    with patch.object(type(current_platform), "get_device_capability", answer):
        yield


def cuda_block_size(config: Any, capability: int) -> None:
    """The CUDA platform's adjustment of the block size before 0.18, by the model and the GPU."""
    if release.version() >= (0, 18):
        return
    with patch.dict(sys.modules, {"vllm._C": ModuleType("vllm._C")}):
        from vllm.platforms.cuda import CudaPlatformBase

    module = (
        "vllm.attention.ops.flashmla" if release.version() < (0, 14) else "vllm.v1.attention.ops.flashmla"
    )
    hopper = capability // 10 == 9
    with ExitStack() as stack:
        stack.enter_context(gpu(capability))
        found = classmethod(lambda cls, family, *args: capability // 10 == family // 10)
        stack.enter_context(patch.object(CudaPlatformBase, "is_device_capability_family", found))
        stack.enter_context(patch(f"{module}.is_flashmla_dense_supported", lambda: (hopper, None)))
        CudaPlatformBase.check_and_update_config(config)
