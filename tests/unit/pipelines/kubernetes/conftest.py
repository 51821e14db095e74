"""Schemas of KubeRay's custom resources."""

from __future__ import annotations

from typing import Any

import pytest

from .custom_resources import read_schemas
from .rendering import ROOT


@pytest.fixture(scope="session")
def schemas() -> dict[str, Any]:
    folder = ROOT.parent / "shared" / "crds"
    if not folder.is_dir():
        pytest.skip(f"KubeRay's custom resource definitions are not at {folder}")
    return read_schemas(folder)
