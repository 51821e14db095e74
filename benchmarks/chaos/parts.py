"""The parts of `make chaos`, and how they are run.

They are not in `__main__`: a process that `multiprocessing` spawns does not load a package's `__main__`, and would not
find the functions of its tasks.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.chaos import SKIPPED

ROOT = Path(__file__).parents[2]
_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h
_END_TIMEOUT_S = 30.0
_TAIL_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosPart:
    """A part of `make chaos`.

    Attributes:
        name: Name.
        shows: What it shows.
        arguments: Arguments of the Python interpreter; by default the module of this name.
        timeout_s: Deadline, seconds. It is far above the time that the part takes.
    """

    name: str
    shows: str
    arguments: tuple[str, ...] = ()
    timeout_s: float = 900.0

    @property
    def command(self) -> list[str]:
        return [sys.executable, *(self.arguments or ("-m", f"benchmarks.chaos.{self.name}"))]


# The long ones first, so that no part is left alone at the end.
PARTS = (
    ChaosPart(
        name="tests",
        shows="the tests with the mark `chaos`: kills in live runs, exact resume",
        arguments=("-m", "pytest", "-m", "chaos", "-q", "--durations=0", "tests/cluster", "tests/end_to_end"),
        timeout_s=1800.0,
    ),
    ChaosPart(name="stopped_roles", shows="each role is stopped and replaced"),
    ChaosPart(name="random_kills", shows="a run survives a random kill every 5 s for 3 minutes"),
    ChaosPart(name="tickers", shows="three tickers run each due time once, under kills and stops"),
    ChaosPart(
        name="removed_node",
        shows="a run survives the loss of the node with its responses and scores",
        arguments=("-m", "benchmarks.chaos.network.removed_node"),
    ),
    ChaosPart(name="mutants", shows="each named mutant fails a test"),
    ChaosPart(name="two_nodes", shows="a run survives a partition, packet loss and latency"),
    ChaosPart(name="long_run", shows="500 steps leave nothing behind"),
    ChaosPart(name="small_store", shows="2 GiB of groups pass a small object store"),
    ChaosPart(name="bit_flips", shows="a flipped bit in any kind of file is noticed"),
    ChaosPart(name="teacher_openapi", shows="a teacher's HTTP side holds against generated requests"),
)


class Outcome(StrEnum):
    """Outcome of a part."""

    PASSED = auto()
    SKIPPED = auto()
    FAILED = auto()
    LATE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a part.

    Attributes:
        part: The part.
        outcome: Its outcome.
        elapsed_s: Duration, seconds.
        cpu_s: CPU time of all its processes, seconds.
        log: File with its output.
    """

    part: ChaosPart
    outcome: Outcome
    elapsed_s: float
    cpu_s: float
    log: Path

    @property
    def is_failed(self) -> bool:
        return self.outcome in (Outcome.FAILED, Outcome.LATE)

    @property
    def last_line(self) -> str:
        """Last line of the output, which is the reason if the part was skipped."""
        return next(iter(self.tail(1)), "")

    def tail(self, lines: int) -> list[str]:
        """Return the last lines of the output that are not empty."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()][-lines:]


def run_part(part: ChaosPart, logs: Path) -> Result:
    """Run a part, and kill what it leaves: every descendant of this process, which runs nothing else.

    Args:
        part: The part.
        logs: Folder for its output, which exists.
    """
    _adopt_orphans()
    log, began, cpu_before = logs / f"{part.name}.log", time.monotonic(), _cpu_s()
    with log.open("wb") as output:
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            outcome = _OUTCOMES.get(process.wait(part.timeout_s), Outcome.FAILED)
        except subprocess.TimeoutExpired:
            outcome = Outcome.LATE
            process.terminate()  # it removes what is no process, such as network namespaces
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_TIMEOUT_S)
        finally:
            _end_descendants()
    elapsed_s = time.monotonic() - began
    return Result(part=part, outcome=outcome, elapsed_s=elapsed_s, cpu_s=_cpu_s() - cpu_before, log=log)


_OUTCOMES = {0: Outcome.PASSED, SKIPPED: Outcome.SKIPPED}


def run_parts(parts: Sequence[ChaosPart], logs: Path, console: Console, *, jobs: int) -> list[Result]:
    """Run parts, also after failures, each in a process of its own. Kills every descendant of this process.

    Args:
        parts: The parts, in the order in which they begin.
        logs: Folder for their output.
        console: Where the end of each part is printed, with the end of its output if it has failed.
        jobs: Number of parts at once.
    """
    logs.mkdir(parents=True, exist_ok=True)
    _adopt_orphans()
    console.print(f"{len(parts)} parts, {jobs} at once; their output is in {logs}/", highlight=False, soft_wrap=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as executor:
        try:
            running = [executor.submit(run_part, part, logs) for part in parts]
            for ended in as_completed(running):
                _print_end(ended.result(), console)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            _end_descendants()
            raise
    return [each.result() for each in running]


def _print_end(result: Result, console: Console) -> None:
    console.print(f"{result.part.name} {result.outcome} after {result.elapsed_s:.0f} s", highlight=False)
    if result.is_failed:
        console.print("\n".join(result.tail(_TAIL_LINES)), markup=False, highlight=False)


def _end_descendants() -> None:
    """Kill all descendants of this process, and wait for them."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while found := psutil.Process().children(recursive=True):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes did not end within {_END_TIMEOUT_S:g} s: {found}")
        time.sleep(0.05)


def _adopt_orphans() -> None:
    """Make this process the parent of descendants whose parent ends, so that their end and CPU time are seen."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _cpu_s() -> float:
    """Return the CPU time of all descendants that have ended, seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
