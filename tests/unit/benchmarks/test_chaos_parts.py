"""`make chaos` runs every part, and its exit status and table tell what came of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.chaos.parts import PARTS

ROOT = Path(__file__).parents[3]

# The command itself with other parts, in a process of its own: it kills all its descendants.
RUN = """
import runpy
from benchmarks.chaos import parts

codes = {
    "failing": "print('the cause'); raise SystemExit(3)",
    "passing": "sum(range(10**8))",
    "skipped": "print('skipped: no such kernel'); raise SystemExit(77)",
    "late": "import time; time.sleep(600)",
    "leaving": "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)",
}
parts.PARTS = [
    parts.ChaosPart(name=name, shows="-", arguments=("-c", code), timeout_s=1.0 if name == "late" else 60.0)
    for name, code in codes.items()
]
runpy.run_module("benchmarks.chaos", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def output(logs: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", RUN, "--logs", str(logs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert ended.returncode == 1, ended.stderr
    return ended.stdout


def test_every_program_of_the_package_is_a_part() -> None:
    programs = {
        path.stem
        for path in (ROOT / "benchmarks" / "chaos").glob("[!_]*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    assert programs == {part.name for part in PARTS if not part.arguments}


def test_all_parts_run_although_some_fail(output: str) -> None:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows if row[1]] == [
        ["failing", "failed"],
        ["passing", "passed"],
        ["skipped", "skipped"],
        ["late", "late"],
        ["leaving", "passed"],
    ]
    assert [int(row[3]) > 0 for row in rows if row[0] == "passing"] == [True], "no CPU time"


def test_end_of_the_output_of_a_failed_part_is_printed(output: str) -> None:
    assert "the cause" in output.splitlines()


def test_table_has_the_reason_of_a_skipped_part(output: str) -> None:
    [row] = [line for line in output.splitlines() if "│ skipped" in line]
    assert "no such kernel" in row


def test_process_that_a_part_leaves_is_killed(output: str, logs: Path) -> None:
    pid, deadline = int((logs / "leaving.log").read_text()), time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_unknown_part_is_refused_and_nothing_runs() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--only", "bitflips"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "no part is named bitflips" in " ".join(ended.stderr.replace("│", " ").split())
