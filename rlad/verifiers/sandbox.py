"""One untrusted Python program in a locked-down process of its own: what it may use is bounded, and nothing of it outlives the call.

What holds, and by what:

- network: a network namespace without any interface (as root, or where unprivileged user namespaces are permitted); Landlock without TCP (kernel 6.7
  and newer, no privilege needed); and an audit hook in the interpreter, which needs nothing of the kernel. Where the first is missing, the hook also
  forbids starting programs and loading C libraries, so that nothing gets around it;
- memory, CPU time, file sizes, processes: `setrlimit`. As root each program gets a user of its own, so that the count of processes is its own;
- files: its own temporary directory; Landlock (kernel 5.13 and newer) forbids all other writing, and reading anything but Python's and the system's;
- wall time: its process group is killed, and with a process namespace whatever else it started. It dies with its caller.

An audit hook alone stops programs that try, not an attacker who means to break the interpreter: run pools that judge code where namespaces are permitted.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from rlad.errors import EngineError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MIB = 1 << 20
# Of what goes wrong in the sandbox itself, for the error.
_STDERR_BYTES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """What one program may use.

    Attributes:
        wall_s: seconds from start to end.
        cpu_s: whole seconds of processor time, over all its threads.
        memory_mib: address space of a process.
        file_mib: size of any file it writes, its standard output included.
        processes: that it may be at once, threads included, itself too.
        mechanisms: of the kernel, used where it permits them. Fewer only to try what holds without them.
    """

    wall_s: float
    cpu_s: int = 5
    memory_mib: int = 1024
    file_mib: int = 8
    processes: int = 8
    mechanisms: tuple[Literal["namespaces", "landlock"], ...] = ("namespaces", "landlock")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """How a program ended.

    Attributes:
        ended: `exited` whatever its exit code, `killed` by a signal (out of memory, a crash), or `timeout` of wall or CPU time.
        exit_code: where it exited.
        has_passed: it ran to its end, and then the assertions; True without assertions where it exited with 0.
        stdout: what it wrote, as UTF-8, bytes that are none replaced.
        stderr: its last 2,000 bytes.
        barriers: the mechanisms that held it.
    """

    ended: Literal["exited", "killed", "timeout"]
    exit_code: int | None
    has_passed: bool
    stdout: str
    stderr: str
    barriers: tuple[str, ...]


def run_sandboxed(source: str, *, limits: SandboxLimits, stdin: str = "", asserts: str | None = None) -> SandboxResult:
    """Run Python source, then the assertions in its namespace.

    Raises:
        EngineError: the sandbox itself failed.
    """
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="rlad-sandbox-", ignore_cleanup_errors=True) as outside:
        Path(outside).chmod(0o711)  # the program's own user must get to its directory below
        inside = Path(outside) / "work"
        inside.mkdir(mode=0o700)
        spec = {
            "caller": os.getpid(),
            "source": source,
            "asserts": asserts,
            "token": token,
            "directory": str(inside),
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_mib * _MIB,
            "file_bytes": limits.file_mib * _MIB,
            "processes": limits.processes,
            "mechanisms": limits.mechanisms,
        }
        with (
            tempfile.TemporaryFile(dir=outside) as spec_file,
            tempfile.TemporaryFile(dir=outside) as report_file,
            tempfile.TemporaryFile(dir=outside) as stdin_file,
            tempfile.TemporaryFile(dir=outside) as stdout_file,
            tempfile.TemporaryFile(dir=outside) as stderr_file,
        ):
            for file, text in ((spec_file, json.dumps(spec)), (stdin_file, stdin)):
                file.write(text.encode("utf-8", "surrogatepass" if file is spec_file else "replace"))
                file.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", str(_CHILD), str(spec_file.fileno()), str(report_file.fileno())],
                stdin=stdin_file,
                stdout=stdout_file,
                stderr=stderr_file,
                pass_fds=(spec_file.fileno(), report_file.fileno()),
                env={},
                cwd=inside,
                start_new_session=True,
            )
            is_late = False
            try:
                process.wait(limits.wall_s)
            except subprocess.TimeoutExpired:
                is_late = True
            finally:
                _kill_group(process)
            stdout = _contents(stdout_file, limits.file_mib * _MIB).decode("utf-8", "replace")
            stderr = _contents(stderr_file, limits.file_mib * _MIB)[-_STDERR_BYTES:].decode("utf-8", "replace")
            reports = _contents(report_file, _MIB).splitlines()
    return _result(
        reports, token if asserts is not None else None, limits, is_late=is_late, stdout=stdout, stderr=stderr
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program, ended or not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _contents(file: IO[bytes], limit: int) -> bytes:
    file.seek(0)
    return file.read(limit)


def _result(
    reports: list[bytes], token: str | None, limits: SandboxLimits, *, is_late: bool, stdout: str, stderr: str
) -> SandboxResult:
    report = {}
    for line in reports:
        try:
            report.update(json.loads(line))
        except (ValueError, TypeError):
            continue  # the program can write here too, and only harm itself
    barriers, end = report.get("barriers"), report.get("end")
    if barriers is None and not is_late:
        raise EngineError(
            f"the sandbox of a program failed before the program began: {stderr.strip() or 'no reason given'}"
        )
    barriers = tuple(barriers or ())
    if is_late or end is None:
        return SandboxResult(
            ended="timeout" if is_late else "killed",
            exit_code=None,
            has_passed=False,
            stdout=stdout,
            stderr=stderr,
            barriers=barriers,
        )
    if end["signal"] is not None:
        # The kernel kills where the time it counted by clock ticks is up; what it reports afterwards is exact, and on a busy machine well below.
        is_out_of_cpu = end["signal"] in (signal.SIGKILL, signal.SIGXCPU) and end["cpu_s"] > 0.5 * limits.cpu_s
        return SandboxResult(
            ended="timeout" if is_out_of_cpu else "killed",
            exit_code=None,
            has_passed=False,
            stdout=stdout,
            stderr=stderr,
            barriers=barriers,
        )
    has_passed = end["exit_code"] == 0 and (token is None or report.get("passed") == token)
    return SandboxResult(
        ended="exited",
        exit_code=end["exit_code"],
        has_passed=has_passed,
        stdout=stdout,
        stderr=stderr,
        barriers=barriers,
    )
