"""Restrictions of untrusted programs, each tested by a program that attempts to violate it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rlad.verifiers.sandbox import SandboxLimits, SandboxResult, run_sandboxed
from tests.processes import still_alive

LIMITS = SandboxLimits(wall_s=20, cpu_s=2, memory_mib=256, file_mib=1, processes=8)
# All mechanisms that the kernel permits, only Landlock, and none.
MECHANISMS = [("namespaces", "landlock"), ("landlock",), ()]


def run(source: str, **changes: object) -> SandboxResult:
    return run_sandboxed(source, limits=replace(LIMITS, **changes))  # type: ignore[arg-type]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


CONNECT = """
import socket
socket.create_connection(("127.0.0.1", {port}), timeout=5).send(b"here")
print("connected")
"""
CONNECT_BY_LIBC = """
import ctypes, socket, struct
made = socket.socket()
address = struct.pack("=H", 2) + struct.pack("!H4s8x", {port}, bytes([127, 0, 0, 1]))
if ctypes.CDLL(None).connect(made.fileno(), address, 16) == 0:
    made.send(b"here")
    print("connected")
else:
    raise OSError("refused")
"""
CONNECT_BY_PROGRAM = """
import subprocess, sys
print(subprocess.run([sys.executable, "-I", "-c", {source!r}], check=True, capture_output=True, text=True).stdout)
"""


@pytest.mark.parametrize("mechanisms", MECHANISMS)
@pytest.mark.parametrize("way", ["python", "libc", "program"])
def test_program_cannot_reach_a_listener_on_loopback(
    listener: socket.socket, mechanisms: tuple[str, ...], way: str
) -> None:
    port = listener.getsockname()[1]
    by_python = CONNECT.format(port=port)
    source = {
        "python": by_python,
        "libc": CONNECT_BY_LIBC.format(port=port),
        "program": CONNECT_BY_PROGRAM.format(source=by_python),
    }[way]
    result = run(source, mechanisms=mechanisms)
    assert (result.ended, result.exit_code) == ("exited", 1), result
    assert "connected" not in result.stdout
    with pytest.raises(BlockingIOError):  # no connection arrived
        listener.accept()
    # The same program connects without a sandbox.
    assert (
        "connected" in subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True).stdout
    )
    listener.accept()[0].close()


@pytest.mark.parametrize("mechanisms", MECHANISMS)
def test_program_cannot_send_datagrams(mechanisms: tuple[str, ...]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        port = receiver.getsockname()[1]
        source = (
            f"import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'here', ('127.0.0.1', {port}))"
        )
        assert run(source, mechanisms=mechanisms).exit_code == 1
        with pytest.raises(BlockingIOError):
            receiver.recv(10)
        subprocess.run([sys.executable, "-c", source], check=True)
        assert receiver.recv(10) == b"here"


@pytest.mark.parametrize("mechanisms", MECHANISMS)
def test_ordinary_programs_run(mechanisms: tuple[str, ...]) -> None:
    source = """
import asyncio, sys, threading, numpy
async def double(number): return 2 * number
def ask():
    sys.setrecursionlimit(100_000)
    print("Größe", asyncio.run(double(int(input()))), numpy.arange(4).sum())
thread = threading.Thread(target=ask)
thread.start()
thread.join()
with open("own", "w") as file: file.write("x")
print(open("own").read())
"""
    result = run_sandboxed(source, limits=replace(LIMITS, mechanisms=mechanisms, memory_mib=1024), stdin="21\n")  # type: ignore[arg-type]
    assert (result.ended, result.exit_code, result.stdout, result.has_passed) == (
        "exited",
        0,
        "Größe 42 6\nx\n",
        True,
    ), result


def test_program_does_not_see_the_callers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    result = run("import os, sys\nprint(sorted(os.environ), os.listdir('.'), sys.argv, sys.flags.isolated)")
    assert result.stdout == "['LC_CTYPE', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'] [] ['solution.py'] 1\n"


@pytest.mark.parametrize(
    "source", ["spin()", "import threading\nfor _ in range(3): threading.Thread(target=spin).start()"]
)
def test_cpu_time_is_bounded_over_all_threads(source: str) -> None:
    start = time.monotonic()
    assert run(f"def spin():\n    while True: pass\n{source}", cpu_s=1, memory_mib=1024).ended == "timeout"
    assert time.monotonic() - start < LIMITS.wall_s


def test_wall_time_is_bounded() -> None:
    assert run("import time\ntime.sleep(1000)", wall_s=0.5).ended == "timeout"


def test_memory_is_bounded() -> None:
    result = run("filled = bytearray(512 << 20)")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, "MemoryError")
    assert run("filled = bytearray(512 << 20)", memory_mib=1024).exit_code == 0


def test_files_and_output_are_bounded() -> None:
    assert "File too large" in run("open('big', 'wb').write(bytes(4 << 20))").stderr
    result = run("print('x' * (4 << 20))")
    assert (result.exit_code, len(result.stdout)) == (1, 1 << 20)


@pytest.mark.parametrize("mechanisms", MECHANISMS[:2])
def test_threads_are_bounded(mechanisms: tuple[str, ...]) -> None:
    source = "import threading, time\nfor count in range({}): threading.Thread(target=time.sleep, args=(0.3,)).start()"
    assert run(source.format(6), mechanisms=mechanisms, memory_mib=2048).exit_code == 0
    assert "can't start new thread" in run(source.format(20), mechanisms=mechanisms, memory_mib=2048).stderr


def test_concurrent_programs_do_not_share_limits() -> None:
    from concurrent.futures import ThreadPoolExecutor

    source = "import threading, time\nfor count in range(6): threading.Thread(target=time.sleep, args=(0.3,)).start()"
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: run(source, memory_mib=1024), range(16)))
    assert [result.exit_code for result in results] == [0] * 16


ESCAPE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(0.01)
    os._exit(0)
os.wait()
print("left behind", flush=True)
{wait}
"""


@contextmanager
def watched_processes() -> Iterator[set[psutil.Process]]:
    """Collect all processes that descend from this one during the block. Other tests may run sandboxes meanwhile."""
    seen: set[psutil.Process] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            seen.update(psutil.Process().children(recursive=True))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        is_over.set()
        watcher.join()


@pytest.mark.parametrize(("wait", "ended"), [("time.sleep(0.5)", "exited"), ("time.sleep(1000)", "timeout")])
def test_processes_of_a_program_die_with_it_even_in_their_own_session(wait: str, ended: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    with watched_processes() as seen:
        result = run(ESCAPE.format(wait=wait), wall_s=5 if ended == "exited" else 1)
    if "process_namespace" not in result.barriers:
        pytest.skip("this machine permits no process namespace")
    assert (result.stdout, result.ended) == ("left behind\n", ended)
    own = seen - before
    assert len(own) >= 3  # the parent of the run, the program, and the process that it left behind
    assert still_alive(own, 10) == []


def test_program_dies_with_its_caller() -> None:
    caller = (
        "from rlad.verifiers.sandbox import *; "
        "run_sandboxed('import time; time.sleep(1000)', limits=SandboxLimits(wall_s=1000))"
    )
    process = subprocess.Popen([sys.executable, "-c", caller], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    deadline = time.monotonic() + 20
    while len(programs := psutil.Process(process.pid).children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(programs) == 3  # the sandbox, the parent of the run, and the program
    assert still_alive(programs, 10) == []


def test_landlock_restricts_files_to_the_programs_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    result = run(f"print(open({str(secret)!r}).read())")
    if "landlock_files" not in result.barriers:
        pytest.skip("this kernel has no Landlock")
    assert (result.exit_code, result.stdout) == (1, "")
    assert run(f"open({str(tmp_path / 'made')!r}, 'w')").exit_code == 1
    assert not (tmp_path / "made").exists()


def test_signals_do_not_reach_the_caller() -> None:
    assert run(
        "import os, signal\nos.kill(os.getppid() or 1, 0)\nos.kill(1, signal.SIGTERM)\nprint('still here')"
    ).ended in ("exited", "killed")
    assert run(f"import os, signal\nos.kill({os.getpid()}, signal.SIGTERM)").exit_code == 1


@pytest.mark.parametrize(
    "source", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit", "import os; os.abort()"]
)
def test_program_that_ends_before_the_assertions_has_not_passed(source: str) -> None:
    assert not run_sandboxed(source, limits=LIMITS, asserts="assert False").has_passed
    assert not run_sandboxed(source, limits=LIMITS, asserts="assert True").has_passed
