"""Commands in the state of a pod: another user without capabilities, where namespaces are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[3]


def in_a_pod(*command: str) -> str:
    """Run Python as uid 1000 without capabilities, where new namespaces are refused, and return its output."""
    process = subprocess.run(
        [sys.executable, str(HERE / "deployed_state.py"), sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if (
        process.returncode
        and "OSError" in process.stderr
        and ("mount" in process.stderr or "unshare" in process.stderr)
    ):
        pytest.skip(
            f"this machine permits no mount that shows the interpreter to another user: {process.stderr[-300:]}"
        )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout
