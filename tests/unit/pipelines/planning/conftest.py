"""Model directories for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from .plan_inputs import write_shape


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    return {
        "0.6B": write_shape(root / "0.6B", hidden=1024, layers=28, feed_forward=3072, heads=16, tied=True),
        "1.7B": write_shape(root / "1.7B", hidden=2048, layers=28, feed_forward=6144, heads=16, tied=True),
        "8B": write_shape(root / "8B", hidden=4096, layers=36, feed_forward=12288, heads=32, tied=False),
        "32B": write_shape(root / "32B", hidden=5120, layers=64, feed_forward=25600, heads=64, tied=False),
    }
