from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest


@pytest.fixture(scope="session")
def knights_knaves_files(shared_data: Path) -> list[Path]:
    """Files of the K&K set: 100 puzzles each with 3 to 6 people."""
    return [shared_data / "knights_knaves" / f"{people}ppl_test.parquet" for people in (3, 4, 5, 6)]


@pytest.fixture(scope="session")
def real_rows(knights_knaves_files: list[Path]) -> list[dict[str, Any]]:
    rows = [row for path in knights_knaves_files for row in pyarrow.parquet.read_table(path).to_pylist()]
    assert len(rows) == 400
    return rows
