"""Probe of the sandbox on this machine: a program in it tries to leave it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from rlad.errors import ConfigError, EngineError
from rlad.sandbox.inside import filters
from rlad.sandbox.limits import SandboxLimits
from rlad.sandbox.session import SandboxResult, SandboxSession, seccomp_library

Status = Literal["ok", "warning", "error"]
Isolation = Literal["full", "filtered", "any"]
"""Isolation that a configuration requires.

`full`: namespaces, Landlock and seccomp. `filtered`: Landlock and seccomp; the state of a pod without capabilities.
`any`: no requirement.
"""

_PROGRAM = """
import json, os, threading
reached = []
def attempt(name, action):
    try: action()
    except Exception: return
    reached.append(name)
def connect():
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
def start():
    threads = [threading.Thread(target=threads_done.wait) for _ in range(3)]
    for thread in threads: thread.start()
    threads_done.set()
    for thread in threads: thread.join()
threads_done = threading.Event()
attempt("socket", connect)
attempt("execute", lambda: os.posix_spawn("/bin/true", ["true"], {}))
attempt("read", lambda: open("/etc/passwd").close())
attempt("write", lambda: open(OUTSIDE, "w").close())
attempt("signal", lambda: os.kill(os.getppid() or -1, 0))
attempt("threads", start)
print(json.dumps(reached))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One property of the sandbox.

    Attributes:
        name: The property.
        status: `ok` if it holds, `warning` if a second barrier is missing, `error` if it does not hold.
        detail: What was found.
        remedy: What to do about it; empty if `ok`.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxReport:
    """Result of the probe.

    Attributes:
        level: Strongest isolation that holds.
        checks: The properties, in order.
    """

    level: Isolation
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst status of all checks."""
        found = {check.status for check in self.checks}
        return "error" if "error" in found else "warning" if "warning" in found else "ok"


@cache
def probe_sandbox() -> SandboxReport:
    """Run a program in the sandbox and report what holds. Takes a quarter of a second, once in a process."""
    outside = f"/tmp/rlad-probe-{os.getpid()}"
    try:
        with SandboxSession(SandboxLimits(wall_s=30)) as session:
            result = session.run(f"OUTSIDE = {outside!r}\n{_PROGRAM}", deadline=time.monotonic() + 30)
    except EngineError as error:
        return SandboxReport(
            level="any",
            checks=(
                Check(
                    name="start",
                    status="error",
                    detail=str(error),
                    remedy="The sandbox requires Linux and Python 3.11.",
                ),
            ),
        )
    finally:
        Path(outside).unlink(missing_ok=True)
    return SandboxReport(level=_level(result), checks=tuple(_checks(result)))


def require_isolation(required: Isolation, who: str) -> None:
    """Refuse to run untrusted programs where the sandbox does not hold.

    Args:
        required: Isolation that the configuration requires.
        who: What runs them, for the error.

    Raises:
        ConfigError: This machine's isolation is weaker.
    """
    order = ("any", "filtered", "full")
    if required == "any":
        return
    report = probe_sandbox()
    if order.index(report.level) < order.index(required):
        missing = "; ".join(f"{check.name}: {check.detail}" for check in report.checks if check.status != "ok")
        raise ConfigError(
            f"{who} requires isolation {required!r}, but this machine gives {report.level!r} ({missing}). "
            "`rlad doctor sandbox` gives remedies; to accept it, set `isolation: "
            f"{report.level}` of the verifier"
        )


def _level(result: SandboxResult) -> Isolation:
    barriers = set(result.barriers)
    reached = _reached(result)
    if not {"seccomp", "landlock_files"} <= barriers or reached - {"threads"}:
        return "any"
    return "full" if {"network_namespace", "process_namespace"} <= barriers else "filtered"


def _reached(result: SandboxResult) -> set[str]:
    try:
        return {str(name) for name in json.loads(result.stdout)}
    except ValueError:
        return set()


def _checks(result: SandboxResult) -> Iterator[Check]:
    barriers, reached = set(result.barriers), _reached(result)
    if result.exit_code != 0:
        yield Check(
            name="start",
            status="error",
            detail=f"the probe {result.ended}: {result.stderr[-200:]}",
            remedy="Report this with the output of `rlad doctor sandbox --json`.",
        )
    has_namespaces = {"network_namespace", "process_namespace"} <= barriers
    yield Check(
        name="namespaces",
        status="ok" if has_namespaces else "warning",
        detail=f"active: {_named(barriers, 'network_namespace process_namespace ipc_namespace mount_namespace')}"
        if has_namespaces
        else "this machine refuses new namespaces: network and processes are restricted by seccomp alone",
        remedy=""
        if has_namespaces
        else "Permit unprivileged user namespaces, run as root, or use a sandboxed runtime class. In a pod without "
        "capabilities under seccomp RuntimeDefault they are refused.",
    )
    yield Check(
        name="landlock",
        status="ok" if "landlock_files" in barriers else "error",
        detail="files are restricted" + (", and TCP" if "landlock_tcp" in barriers else "")
        if "landlock_files" in barriers
        else "the kernel has no Landlock: a program can read what the verifier pool's user can read",
        remedy=""
        if "landlock_files" in barriers
        else "Use Linux 5.13 or newer with `landlock` in /sys/kernel/security/lsm.",
    )
    yield _seccomp_check(barriers)
    has_limit = "process_limit" in barriers
    yield Check(
        name="processes",
        status="ok" if has_limit or "seccomp" in barriers else "error",
        detail="limited by the kernel for a user of the sandbox's own"
        if has_limit
        else "threads are counted by the caller; "
        + ("no process can be started" if "seccomp" in barriers else "processes can outlive the program"),
        remedy="" if has_limit or "seccomp" in barriers else "Install libseccomp.",
    )
    yield Check(
        name="files in total",
        status="ok",
        detail="limited by a memory file system" if "limited_files" in barriers else "counted by the caller",
    )
    for name, text in (
        ("socket", "a program can open a socket"),
        ("execute", "a program can execute another"),
        ("read", "a program can read /etc/passwd"),
        ("write", "a program can write outside of its directory"),
        ("signal", "a program can signal another process"),
    ):
        if name in reached:
            yield Check(name=name, status="error", detail=text, remedy="See the checks above.")
    if "threads" not in reached:
        yield Check(name="threads", status="error", detail="three threads do not start", remedy="Raise `ulimit -u`.")


def _seccomp_check(barriers: set[str]) -> Check:
    if "seccomp" in barriers:
        return Check(name="seccomp", status="ok", detail="system calls are filtered")
    if os.uname().machine not in filters.MACHINES:
        detail, remedy = f"{os.uname().machine} is not supported", f"Use a machine of {' or '.join(filters.MACHINES)}."
    elif seccomp_library() is None:
        detail = "libseccomp or its Python binding is not installed"
        remedy = "Install them with `apt install libseccomp2` and `pip install pyseccomp`."
    else:
        detail, remedy = "the kernel or the container refuses filters", "Permit the system call seccomp."
    return Check(name="seccomp", status="error", detail=detail, remedy=remedy)


def _named(barriers: set[str], names: str) -> str:
    return ", ".join(name.partition("_")[0] for name in names.split() if name in barriers)
