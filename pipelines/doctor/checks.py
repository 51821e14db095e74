"""Checks of `rlad doctor`, as pure functions of the collected facts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipelines.doctor.facts import Facts, Gap, Links, Machine, Sandbox, SharedMemory, Trial
from pipelines.environment.check import Check, Status
from pipelines.environment.packages import Packages, package_checks

# First driver branch of CUDA 13, whose libraries PyTorch's wheels contain.
DRIVER_FLOOR = 580
# Less is a container's default: Ray's object store and a weight file do not fit.
_SHARED_MEMORY_GIB = 1.0
# Gaps between engines that compute the same model, in nats: above the first a warning, above the second an error.
_GAPS = {"float32": (1e-4, 1e-3), "bfloat16": (0.02, 0.1)}
_SLOW_STORE_GB_S = 0.3
_SLOW_NCCL_GB_S = 5.0
# Measured memory of the learner over the planned one, above which a plan is not reliable.
_MEMORY_MARGIN = 1.25


def run_checks(facts: Facts) -> list[Check]:
    """Return the results of all checks, in the order of the report."""
    checks = [*package_checks(facts.packages), *machine_checks(facts.machine, facts.packages), _sandbox(facts.sandbox)]
    if facts.trial is not None:
        checks += trial_checks(facts.trial)
    if facts.links is not None:
        checks += link_checks(facts.links)
    return checks


def machine_checks(machine: Machine, packages: Packages) -> Iterator[Check]:
    """Check driver, GPUs, shared memory and compilers."""
    yield _driver(machine, packages)
    yield _shared_memory(machine.shared_memory)
    if packages.torch_cuda is not None:
        yield _compilers(machine)


def _driver(machine: Machine, packages: Packages) -> Check:
    name, floor = "GPU driver", f"CUDA {packages.torch_cuda} needs driver {DRIVER_FLOOR} or newer"
    if packages.torch_cuda is None:
        if not machine.gpus:
            return Check(name=name, status="ok", detail="no GPU, and PyTorch is a CPU build")
        return Check(
            name=name,
            status="warning",
            detail=f"{_named(machine)} not used: PyTorch is a CPU build",
            remedy="Make the environment with `make setup-gpu`.",
        )
    if machine.driver is None or not machine.gpus:
        return Check(
            name=name,
            status="error",
            detail="PyTorch is a CUDA build, and no NVIDIA driver reports a GPU",
            remedy="Install the driver; start containers with `--gpus all`; without GPUs use `make setup`.",
        )
    if int(machine.driver.split(".")[0]) < DRIVER_FLOOR:
        return Check(
            name=name,
            status="error",
            detail=f"driver {machine.driver}; {floor}",
            remedy="Update the driver of the node.",
        )
    return Check(name=name, status="ok", detail=f"driver {machine.driver}, {_named(machine)}")


def _named(machine: Machine) -> str:
    return f"{len(machine.gpus)} x {machine.gpus[0].name} of {machine.gpus[0].memory_gib:.0f} GiB"


def _shared_memory(memory: SharedMemory) -> Check:
    detail = f"{memory.path}: {memory.free_gib:.1f} GiB free of {memory.total_gib:.1f}"
    if memory.is_writable and memory.total_gib >= _SHARED_MEMORY_GIB:
        return Check(name="shared memory", status="ok", detail=detail)
    return Check(
        name="shared memory",
        status="error",
        detail=detail if memory.is_writable else f"{memory.path} is missing or not writable",
        remedy="Give the container more: `docker run --shm-size=16g` or `--ipc=host`; in Kubernetes an emptyDir of "
        "medium Memory at /dev/shm. A third of the memory is right for Ray.",
    )


def _compilers(machine: Machine) -> Check:
    missing = [name for name in ("gcc", "g++") if name not in machine.compilers]
    if not missing:
        return Check(
            name="compilers", status="ok", detail="gcc and g++, for kernels that are compiled at the first use"
        )
    return Check(
        name="compilers",
        status="error",
        detail=f"{' and '.join(missing)} not found; engines compile kernels at the first use",
        remedy="Install them: `apt install gcc g++ libc6-dev`.",
    )


def _sandbox(sandbox: Sandbox) -> Check:
    if sandbox.isolation == "full":
        return Check(name="sandbox", status="ok", detail="isolation full")
    return Check(
        name="sandbox",
        status="warning" if sandbox.isolation == "filtered" else "error",
        detail=f"isolation {sandbox.isolation}: {'; '.join(sandbox.problems)}",
        remedy="Only verifiers that run programs need it; `rlad doctor sandbox` gives the remedies.",
    )


def trial_checks(trial: Trial) -> Iterator[Check]:
    """Check engines, log-probabilities, weight updates and memory of the trial run."""
    if trial.logits:
        yield _logits(trial)
    if trial.error is not None:
        yield Check(
            name="engines",
            status="error",
            detail=trial.error,
            remedy="Remedy the errors above first. Then read the logs of Ray's workers in /tmp/ray/session_latest.",
        )
        return
    yield Check(
        name="engines",
        status="ok",
        detail=f"rollout, teacher and learner on {trial.device} in {trial.dtype}; the run took {trial.total_s:.0f} s",
    )
    if trial.teacher_gap is not None:
        yield _gap("teacher", trial.teacher_gap, trial)
    if trial.learner_gaps:
        yield _gap("rollout", trial.learner_gaps[0], trial)
    yield _updates(trial)
    if trial.learner_gib is not None and trial.planned_gib is not None:
        yield _memory(trial.learner_gib, trial.planned_gib)


def _logits(trial: Trial) -> Check:
    """Check the output layers. A small vocabulary may not show the loss of a rounded one."""
    name, rounded = "logits", [pool for pool, dtype in trial.logits.items() if dtype != "float32"]
    if not rounded:
        return Check(name=name, status="ok", detail=f"float32 in {' and '.join(trial.logits)}, as in the learner")
    return Check(
        name=name,
        status="error",
        detail=f"{' and '.join(rounded)} rounds logits to {trial.logits[rounded[0]]}; the learner's are float32",
        remedy="Leave out hf_overrides.head_dtype of engine_args, which rlad sets to float32.",
    )


def _gap(name: str, gap: Gap, trial: Trial) -> Check:
    warning, error = _GAPS[trial.dtype]
    largest = "" if gap.largest is None else f", at most {gap.largest:.1g}"
    detail = f"log-probabilities are {gap.mean:.1g} nats from the learner's on average{largest}"
    if gap.mean <= warning:
        return Check(name=name, status="ok", detail=detail)
    remedy = "Remove engine_args that change the computation (quantization, kv_cache_dtype)."
    status: Status = "warning" if gap.mean <= error and not math.isnan(gap.mean) else "error"
    return Check(name=name, status=status, detail=f"{detail} (expected {warning:g})", remedy=remedy)


def _updates(trial: Trial) -> Check:
    name, expected = "weight updates", 2
    limit, done = _GAPS[trial.dtype][1], trial.learner_gaps[1:]
    times = ", ".join(f"{seconds:.2f} s" for seconds in trial.update_s)
    if len(done) >= expected and all(gap.mean <= limit for gap in done):
        return Check(
            name=name,
            status="ok",
            detail=f"{len(done)} by {trial.transport} ({times}); engine and learner agree",
        )
    worst = max((gap.mean for gap in done), default=math.nan)
    return Check(
        name=name,
        status="error",
        detail=f"{len(done)} of {expected} by {trial.transport}; engine and learner then differ by {worst:.1g} nats",
        remedy="Use `weights.transport: object_store`, which verifies a checksum, and report this with --json.",
    )


def _memory(measured: float, planned: float) -> Check:
    detail = f"{measured:.2f} GiB at most, planned {planned:.2f}"
    if measured <= _MEMORY_MARGIN * planned:
        return Check(name="memory", status="ok", detail=detail)
    return Check(
        name="memory",
        status="warning",
        detail=detail,
        remedy="Leave more memory than `rlad plan` computes: a smaller learner.micro_batch_tokens, or more ranks.",
    )


def link_checks(links: Links) -> Iterator[Check]:
    """Check the object store and the links between GPUs."""
    if links.error is not None:
        yield Check(
            name="links",
            status="error",
            detail=links.error,
            remedy="Set NCCL_DEBUG=INFO and repeat; NCCL_SOCKET_IFNAME names the network of several machines.",
        )
    if links.put_gb_s is not None:
        slow = links.put_gb_s < _SLOW_STORE_GB_S
        yield Check(
            name="object store",
            status="warning" if slow else "ok",
            detail=f"{links.put_gb_s:.2g} GB/s",
            remedy="Check that /dev/shm is memory, and that Ray does not spill to disk." if slow else "",
        )
    if links.nccl_gb_s is not None:
        slow = links.nccl_gb_s < _SLOW_NCCL_GB_S
        yield Check(
            name="NCCL",
            status="warning" if slow else "ok",
            detail=f"all-reduce over {links.gpus} GPUs at {links.nccl_gb_s:.3g} GB/s",
            remedy="Check NVLink (`nvidia-smi topo -m`), RDMA and NCCL_IB_HCA; NCCL_DEBUG=INFO names the path."
            if slow
            else "",
        )
    elif links.error is None:
        yield Check(name="NCCL", status="ok", detail=f"not measured: {links.gpus} GPUs")
