"""A run's configuration in a project directory, and a fake dashboard that its job is submitted to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .dashboard import Dashboard, serving

ROOT = Path(__file__).parents[4]


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with serving() as served:
        yield served


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current directory with a run configuration."""
    root = tmp_path / "project"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "smoke.yaml").write_text((ROOT / "configs" / "smoke_cpu.yaml").read_text())
    monkeypatch.chdir(root)
    return root
