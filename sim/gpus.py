"""GPUs: what their data sheets say, and the memory that vLLM sees on them.

Rates are dense (without structured sparsity), per GPU. `memory_bytes` is what the CUDA driver reports as
total memory, which is what vLLM multiplies by `gpu_memory_utilization`; it is less than the size on the
data sheet. The values were taken from public output of `torch.cuda.get_device_properties` and of PyTorch's
out-of-memory messages ("GPU 0 has a total capacity of ..."), in MiB and GiB of 2**20 and 2**30 bytes:

    a100-40gb   42,298,834,944 bytes (deviceQuery, CUDA 12.2; bottlerocket-os/bottlerocket pull request 3873)
    a100-80gb   79.15 to 79.35 GiB by driver, 79.25 most often
    h100-80gb   81,082 to 81,090 MiB (79.18 to 79.19 GiB); older drivers 79.11 GiB
    h200        143,156 MiB; 139.80 and 139.81 GiB
    b200        182,631 to 182,642 MiB; 178.35 GiB in all messages found
    l40s        44.39 to 44.53 GiB (45,589 MiB)
    l4          22.03 to 22.17 GiB

So drivers differ by up to 0.2 GiB: give `gpu:` as a section with your own number where that matters
(`python -c "import torch; print(torch.cuda.get_device_properties(0).total_memory)"`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from sim.config_types import Bytes, Strict, key

GIB = 2**30
TERA = 1e12
GIGA = 1e9

Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Gpu(Strict):
    """One GPU: memory in bytes, rates per second."""

    name: str = key("custom", "Name shown in results.")
    memory_bytes: Bytes = Field(
        description="Total memory as the CUDA driver reports it.", json_schema_extra={"unit": "bytes"}
    )
    memory_bandwidth: Rate = Field(
        description="Peak memory bandwidth.", json_schema_extra={"unit": "bytes per second"}
    )
    bf16_flops: Rate = Field(
        description="Peak dense BF16/FP16 rate of the tensor cores.", json_schema_extra={"unit": "FLOP/s"}
    )
    fp8_flops: Rate | None = key(
        None, "Peak dense FP8 rate; null: no FP8, computed at the BF16 rate.", "FLOP/s"
    )
    link_bandwidth: Rate = key(
        32 * GIGA, "Bandwidth to the other GPUs in one direction (tensor parallelism).", "bytes per second"
    )
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d$")] = key(
        "9.0", "CUDA compute capability; it decides vLLM's attention backend, and so its default block size."
    )
    source: str = key("", "Where the numbers come from.")

    @property
    def capability(self) -> int:
        """Compute capability times ten, such as 90."""
        return int(self.compute_capability.replace(".", ""))


_HOPPER: dict[str, Any] = {
    "bf16_flops": 989.4 * TERA,
    "fp8_flops": 1978.9 * TERA,
    "compute_capability": "9.0",
    "link_bandwidth": 450 * GIGA,
}
_AMPERE: dict[str, Any] = {
    "bf16_flops": 312 * TERA,
    "fp8_flops": None,
    "link_bandwidth": 300 * GIGA,
    "compute_capability": "8.0",
}
MIB = 2**20

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="a100-40gb",
            memory_bytes=42_298_834_944,
            memory_bandwidth=1555 * GIGA,
            source="NVIDIA A100 Tensor Core GPU data sheet (SXM, 40 GB HBM2)",
            **_AMPERE,
        ),
        Gpu(
            name="a100-80gb",
            memory_bytes=round(79.25 * GIB),
            memory_bandwidth=2039 * GIGA,
            source="NVIDIA A100 Tensor Core GPU data sheet (SXM, 80 GB HBM2e)",
            **_AMPERE,
        ),
        Gpu(
            name="h100-80gb",
            memory_bytes=81_089 * MIB,
            memory_bandwidth=3350 * GIGA,
            source="NVIDIA H100 Tensor Core GPU data sheet (SXM, 80 GB HBM3)",
            **_HOPPER,
        ),
        Gpu(
            name="h200",
            memory_bytes=143_156 * MIB,
            memory_bandwidth=4800 * GIGA,
            source="NVIDIA H200 Tensor Core GPU data sheet (SXM, 141 GB HBM3e)",
            **_HOPPER,
        ),
        Gpu(
            name="l40s",
            memory_bytes=round(44.4 * GIB),
            memory_bandwidth=864 * GIGA,
            bf16_flops=362.05 * TERA,
            fp8_flops=733 * TERA,
            link_bandwidth=32 * GIGA,
            compute_capability="8.9",
            source="NVIDIA L40S data sheet (48 GB GDDR6, PCIe Gen4 x16)",
        ),
        Gpu(
            name="l4",
            memory_bytes=round(22.03 * GIB),
            memory_bandwidth=300 * GIGA,
            bf16_flops=121 * TERA,
            fp8_flops=242.5 * TERA,
            link_bandwidth=32 * GIGA,
            compute_capability="8.9",
            source="NVIDIA L4 data sheet (24 GB GDDR6, PCIe Gen4 x16), dense rates",
        ),
        Gpu(
            name="b200",
            memory_bytes=182_632 * MIB,
            memory_bandwidth=8000 * GIGA,
            bf16_flops=2250 * TERA,
            fp8_flops=4500 * TERA,
            link_bandwidth=900 * GIGA,
            compute_capability="10.0",
            source="NVIDIA DGX B200 data sheet, one of 8 GPUs (180 GB HBM3e), dense rates",
        ),
    )
}

ALIASES = {"h100": "h100-80gb", "a100": "a100-80gb", "h100-sxm": "h100-80gb", "h200-141gb": "h200"}


def find_gpu(name: str) -> Gpu | None:
    """The GPU of this name or alias in any case, or None."""
    low = name.lower().replace("_", "-").replace(" ", "-")
    return GPUS.get(ALIASES.get(low, low))


def gpu_names() -> list[str]:
    """All names that `find_gpu` knows."""
    return sorted({*GPUS, *ALIASES})
