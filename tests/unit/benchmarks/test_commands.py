"""Every benchmark is a command that says what it measures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

# In one process: each alone would import torch and Ray anew.
HELP_OF_ALL = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    except SystemExit as end:
        print(f"{name} ended with {end.code}")
"""


def test_every_benchmark_explains_itself() -> None:
    commands = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "typer.run(main)" in path.read_text())
    assert {"learner", "transport", "weights", "teacher", "step"} <= set(commands)
    answer = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, *commands],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    for name in commands:
        assert f"{name} ended with 0" in answer.stdout
    assert answer.stdout.count("--json") == len(commands)
