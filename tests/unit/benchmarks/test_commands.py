"""Tests of the benchmarks' command lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

# All in one process: separate ones would each import torch and Ray.
ALL_HELP_PAGES = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    except SystemExit as end:
        print(f"{name} ended with {end.code}")
"""


def test_every_benchmark_has_a_help_page_and_writes_json() -> None:
    commands = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "typer.run(main)" in path.read_text())
    assert {"learner", "transport", "weights", "teacher", "step"} <= set(commands)
    result = subprocess.run(
        [sys.executable, "-c", ALL_HELP_PAGES, *commands],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120"},
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for name in commands:
        assert f"{name} ended with 0" in result.stdout
    assert result.stdout.count("--json") == len(commands)
