"""Peak figures of accelerators from the vendor's data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rlad.errors import PlanError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Accelerator type.

    Attributes:
        name: Value of `--device`.
        title: Product name.
        memory_gib: Memory, in GiB. Data sheets say GB, but stacks of HBM have GiB; the driver reserves a part.
        memory_bytes_s: Memory bandwidth, in bytes per second.
        bf16_flops: Operations per second of the matrix units in bfloat16, without sparsity.
        peer_bytes_s: Bandwidth to the other accelerators of the node in one direction, in bytes per second. Data sheets
            give the sum of both directions.
        host_bytes_s: Bandwidth to host memory in one direction, in bytes per second.
        source: Data sheet, with its figures.
    """

    name: str
    title: str
    memory_gib: float
    memory_bytes_s: float
    bf16_flops: float
    peer_bytes_s: float
    host_bytes_s: float
    source: str


_KNOWN = (
    Device(
        name="a100",
        title="NVIDIA A100 80GB SXM",
        memory_gib=80,
        memory_bytes_s=2039 * GB,
        bf16_flops=312 * TERA,
        peer_bytes_s=300 * GB,
        host_bytes_s=32 * GB,
        source="NVIDIA A100 Tensor Core GPU data sheet: 2,039 GB/s, 312 TFLOPS, NVLink 600 GB/s, PCIe Gen4 64 GB/s",
    ),
    Device(
        name="h100",
        title="NVIDIA H100 SXM",
        memory_gib=80,
        memory_bytes_s=3350 * GB,
        bf16_flops=989.5 * TERA,
        peer_bytes_s=450 * GB,
        host_bytes_s=64 * GB,
        source="NVIDIA H100 Tensor Core GPU data sheet: 3.35 TB/s, 1,979 TFLOPS with sparsity, NVLink 900 GB/s, "
        "PCIe Gen5 128 GB/s",
    ),
    Device(
        name="h200",
        title="NVIDIA H200 SXM",
        memory_gib=141,
        memory_bytes_s=4800 * GB,
        bf16_flops=989.5 * TERA,
        peer_bytes_s=450 * GB,
        host_bytes_s=64 * GB,
        source="NVIDIA H200 Tensor Core GPU data sheet: 4.8 TB/s, 1,979 TFLOPS with sparsity, NVLink 900 GB/s, "
        "PCIe Gen5 128 GB/s",
    ),
    Device(
        name="b200",
        title="NVIDIA B200 SXM",
        memory_gib=180,
        memory_bytes_s=8000 * GB,
        bf16_flops=2250 * TERA,
        peer_bytes_s=900 * GB,
        host_bytes_s=64 * GB,
        source="NVIDIA DGX B200 data sheet, an eighth of 1,440 GB, 64 TB/s and NVLink 14.4 TB/s; "
        "Blackwell architecture brief: 4.5 PFLOPS with sparsity; PCIe Gen5 128 GB/s",
    ),
)
DEVICES: Mapping[str, Device] = MappingProxyType({device.name: device for device in _KNOWN})


def find_device(name: str) -> Device:
    """Return the device of this name. Case is ignored.

    Raises:
        PlanError: The device is unknown.
    """
    try:
        return DEVICES[name.lower()]
    except KeyError:
        raise PlanError(f"unknown device {name!r}; expected one of {', '.join(DEVICES)}") from None
