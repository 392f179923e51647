"""Attention backends of a GPU that is not there, for layers that are built on the meta device.

A release asks a backend for its name and its kernels' block sizes while it makes layers and their KV-cache
specs; nothing is ever computed. Only the process of a release imports this module, after vLLM.
"""

from __future__ import annotations

from typing import Any, ClassVar

from validation.sizing import release

Base, MultipleOf, Builder = release.backend_base()


class Kernel:
    """Takes any argument, and has nothing but a world of one."""

    dcp_world_size = pcp_world_size = 1

    def __init__(self, *_args: Any, **_values: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def process_weights_after_loading(self, *_args: Any) -> None:
        """Nothing to do."""


class Arguments(Builder):  # type: ignore[misc, valid-type]
    """A class that others derive theirs from."""


class Attention(Base):  # type: ignore[misc, valid-type]
    """Keys and values of their own."""

    accept_output_buffer = True
    name = "FLASH_ATTN"
    #: Block sizes of the kernels, in vLLM's terms.
    sizes: ClassVar[list[Any]] = []

    @classmethod
    def get_name(cls) -> str:
        """A name that the release knows."""
        return cls.name

    @staticmethod
    def get_impl_cls() -> type:
        """What would compute."""
        return Kernel

    @staticmethod
    def get_builder_cls() -> type:
        """What would make the kernel's arguments."""
        return Arguments

    @staticmethod
    def get_metadata_cls() -> type:
        """The kernel's arguments."""
        return Kernel

    @staticmethod
    def get_kv_cache_shape(*_args: Any, **_values: Any) -> tuple[int, ...]:
        """Of no tensor."""
        return ()

    @classmethod
    def get_supported_kernel_block_sizes(cls, _kv_cache_spec: Any = None) -> list[Any]:
        """As the GPU's kernels have them."""
        return Attention.sizes

    @classmethod
    def indexes_kv_by_block_stride(cls) -> bool:
        """As FlashAttention, FlashInfer, Triton and the kernels for latent attention do."""
        return True

    @classmethod
    def validate_configuration(cls, *_args: Any, **_values: Any) -> list[str]:
        """Anything goes."""
        return []


class Latent(Attention):
    """Multi-head latent attention."""

    name = "TRITON_MLA"

    @classmethod
    def is_mla(cls) -> bool:
        """It is."""
        return True


def choose(sizes: tuple[int, ...], multiples: bool) -> None:
    """The kernels' block sizes from now on."""
    Attention.sizes = [MultipleOf(sizes[0])] if multiples else list(sizes)


def path_of(*args: Any, **values: Any) -> str:
    """In the place of the platform's choice of a backend (get_attn_backend_cls)."""
    latent = any(getattr(a, "use_mla", False) for a in (*args, *values.values()))
    return f"{__name__}.{'Latent' if latent else 'Attention'}"
