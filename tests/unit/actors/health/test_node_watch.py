"""Watch of a node, over real processes that are stopped, continued and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from actors.health.node_watch import NodeWatch, Sighting
from actors.health.processes import ProcessId

# A process with a child, which it names.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-S", "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def child_of(parent: subprocess.Popen[str]) -> psutil.Process:
    assert parent.stdout is not None
    return psutil.Process(int(parent.stdout.readline()))


def identity(pid: int) -> ProcessId:
    return ProcessId.of(pid, node="here")


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)  # the signal has taken effect


def test_stopped_process_is_told_from_one_that_sleeps_or_was_continued(parent: subprocess.Popen[str]) -> None:
    child_of(parent)
    watch, process = NodeWatch(), identity(parent.pid)
    assert watch.look([(process, False)]) == [Sighting.ALIVE]
    stop(parent.pid)
    assert watch.look([(process, False), (process, True)]) == [Sighting.STOPPED, Sighting.STOPPED]
    os.kill(parent.pid, signal.SIGCONT)
    os.waitpid(parent.pid, os.WCONTINUED)
    assert watch.look([(process, False)]) == [Sighting.ALIVE]


def test_child_counts_only_if_it_is_an_engine(parent: subprocess.Popen[str]) -> None:
    child, watch, process = child_of(parent), NodeWatch(), identity(parent.pid)
    child.suspend()
    assert watch.look([(process, True), (process, False)]) == [Sighting.STOPPED, Sighting.ALIVE]


def test_kill_ends_a_stopped_process_and_its_stopped_children(parent: subprocess.Popen[str]) -> None:
    child, watch, process = child_of(parent), NodeWatch(), identity(parent.pid)
    child.suspend()
    stop(parent.pid)
    watch.kill(process)
    assert parent.wait(10) == -signal.SIGKILL
    assert psutil.wait_procs([child], timeout=10)[1] == []
    assert watch.look([(process, True)]) == [Sighting.GONE]
    watch.kill(process)  # nothing is left to kill


def test_process_that_has_ended_but_was_not_waited_for_is_gone(parent: subprocess.Popen[str]) -> None:
    child_of(parent).kill()
    process = identity(parent.pid)
    parent.kill()
    os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
    assert NodeWatch().look([(process, False)]) == [Sighting.GONE]


def test_another_process_with_the_same_pid_is_never_killed(parent: subprocess.Popen[str]) -> None:
    child_of(parent)
    process = identity(parent.pid)
    earlier = replace(process, started=process.started - 1)
    assert NodeWatch().look([(earlier, False)]) == [Sighting.GONE]
    NodeWatch().kill(earlier)
    assert parent.poll() is None
