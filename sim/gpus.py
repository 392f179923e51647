"""GPUs: what their data sheets say, and the memory that vLLM sees on them.

Rates are dense (without structured sparsity), per GPU. `memory_bytes` is what the CUDA driver reports as
total memory, which is what vLLM multiplies by `gpu_memory_utilization`; it is less than the size on the
data sheet. The values for H100 and L40S were compared with public start-up and out-of-memory messages;
those for A100, H200 and B200 are typical values that were not. Drivers differ by some 0.2 GiB: give `gpu:`
as a section with your own numbers where that matters.
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
    source: str = key("", "Where the numbers come from.")


_HOPPER: dict[str, Any] = {
    "bf16_flops": 989.4 * TERA,
    "fp8_flops": 1978.9 * TERA,
    "link_bandwidth": 450 * GIGA,
}
_AMPERE: dict[str, Any] = {"bf16_flops": 312 * TERA, "fp8_flops": None, "link_bandwidth": 300 * GIGA}

GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="a100-40gb",
            memory_bytes=round(39.4 * GIB),
            memory_bandwidth=1555 * GIGA,
            source="NVIDIA A100 Tensor Core GPU data sheet (SXM, 40 GB HBM2)",
            **_AMPERE,
        ),
        Gpu(
            name="a100-80gb",
            memory_bytes=round(79.2 * GIB),
            memory_bandwidth=2039 * GIGA,
            source="NVIDIA A100 Tensor Core GPU data sheet (SXM, 80 GB HBM2e)",
            **_AMPERE,
        ),
        Gpu(
            name="h100-80gb",
            memory_bytes=round(79.1 * GIB),
            memory_bandwidth=3350 * GIGA,
            source="NVIDIA H100 Tensor Core GPU data sheet (SXM, 80 GB HBM3)",
            **_HOPPER,
        ),
        Gpu(
            name="h200",
            memory_bytes=round(139.8 * GIB),
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
            source="NVIDIA L40S data sheet (48 GB GDDR6, PCIe Gen4 x16)",
        ),
        Gpu(
            name="b200",
            memory_bytes=round(178.35 * GIB),
            memory_bandwidth=8000 * GIGA,
            bf16_flops=2250 * TERA,
            fp8_flops=4500 * TERA,
            link_bandwidth=900 * GIGA,
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
