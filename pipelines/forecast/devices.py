"""Figures of accelerators, as their maker's data sheets give them: what a forecast of a run's speed is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rlad.errors import PlanError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator.

    Attributes:
        name: by which it is asked for.
        title: what it is sold as.
        memory_gib: the data sheet's GB, which for stacks of HBM are GiB but for what the driver keeps.
        memory_bytes_s: memory bandwidth.
        bf16_flops: operations a second of its matrix units in bfloat16, without sparsity.
        peer_bytes_s: to the other accelerators of its machine, one way (half of what data sheets add up).
        host_bytes_s: to its host's memory, one way.
        source: where the figures are from.
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
        source="NVIDIA H100 Tensor Core GPU data sheet: 3.35 TB/s, 1,979 TFLOPS with sparsity, NVLink 900 GB/s, PCIe Gen5 128 GB/s",
    ),
    Device(
        name="h200",
        title="NVIDIA H200 SXM",
        memory_gib=141,
        memory_bytes_s=4800 * GB,
        bf16_flops=989.5 * TERA,
        peer_bytes_s=450 * GB,
        host_bytes_s=64 * GB,
        source="NVIDIA H200 Tensor Core GPU data sheet: 4.8 TB/s, 1,979 TFLOPS with sparsity, NVLink 900 GB/s, PCIe Gen5 128 GB/s",
    ),
    Device(
        name="b200",
        title="NVIDIA B200 SXM",
        memory_gib=180,
        memory_bytes_s=8000 * GB,
        bf16_flops=2250 * TERA,
        peer_bytes_s=900 * GB,
        host_bytes_s=64 * GB,
        source="NVIDIA DGX B200 data sheet, an eighth of 1,440 GB, 64 TB/s and NVLink 14.4 TB/s; Blackwell architecture brief: 4.5 PFLOPS with sparsity; "
        "PCIe Gen5 128 GB/s",
    ),
)
DEVICES: Mapping[str, Device] = MappingProxyType({device.name: device for device in _KNOWN})


def find_device(name: str) -> Device:
    """The accelerator of a name, whatever its case.

    Raises:
        PlanError: there are no figures of it.
    """
    try:
        return DEVICES[name.lower()]
    except KeyError:
        raise PlanError(f"no figures of a device {name!r}: there are {', '.join(DEVICES)}") from None
