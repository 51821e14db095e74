"""Sandbox for one untrusted Python program: a separate process with bounded resources that does not outlive the call.

Mechanisms:

- Network: a network namespace without interfaces (as root, or if unprivileged user namespaces are permitted); Landlock
  without TCP (kernel 6.7 or newer, no privileges required); and an audit hook in the interpreter, which needs no kernel
  support. Without the namespace, the hook also forbids starting programs and loading C libraries, since those could
  bypass it.
- Memory, CPU time, file sizes and processes: `setrlimit`. As root, each program gets its own user, so that the process
  limit counts only its own processes.
- Files: a temporary directory of its own. Landlock (kernel 5.13 or newer) forbids all other writes, and reads outside
  of Python's and the system's files.
- Wall time: the process group is killed, and with a process namespace also every other process it started. The program
  dies with its caller.

An audit hook alone stops ordinary programs, but not an attacker who breaks the interpreter. Run pools that verify code
where namespaces are permitted.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from rlad.errors import EngineError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MIB = 1 << 20
# Number of trailing bytes of stderr in results and errors.
_STDERR_BYTES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Resource limits of one program.

    Attributes:
        wall_s: Wall time in seconds.
        cpu_s: CPU time over all threads, in whole seconds.
        memory_mib: Address space of a process, in MiB.
        file_mib: Maximum size of a file that it writes, standard output included, in MiB.
        processes: Maximum number of concurrent processes and threads, including the program itself.
        mechanisms: Kernel mechanisms to use where the kernel permits them. Tests use fewer.
    """

    wall_s: float
    cpu_s: int = 5
    memory_mib: int = 1024
    file_mib: int = 8
    processes: int = 8
    mechanisms: tuple[Literal["namespaces", "landlock"], ...] = ("namespaces", "landlock")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """Result of a program.

    Attributes:
        ended: `exited` with any exit code, `killed` by a signal (out of memory, a crash), or `timeout` of wall or CPU
            time.
        exit_code: Exit code; None unless `exited`.
        has_passed: True if the program exited with 0 and, with assertions, ran all of them.
        stdout: Output as UTF-8, with invalid bytes replaced.
        stderr: Last 2,000 bytes of the error output.
        barriers: Mechanisms that were active.
    """

    ended: Literal["exited", "killed", "timeout"]
    exit_code: int | None
    has_passed: bool
    stdout: str
    stderr: str
    barriers: tuple[str, ...]


def run_inputs_sandboxed(
    source: str, *, limits: SandboxLimits, inputs: Sequence[str], imports: str = ""
) -> list[SandboxResult]:
    """Run Python source once for each standard input, in sandboxes that one process forks.

    The interpreter starts once, which is most of the time of a small program. The runs share a Landlock ruleset, but
    no directory. They end after the first one that does not exit with 0, or at the wall time of all of them together.

    Args:
        source: The program.
        limits: Resource limits. The wall time is that of all runs together.
        inputs: Standard input of each run.
        imports: Python source of imports that run before the program.

    Returns:
        The results in order. The last one may be a timeout or a failure; there are fewer than inputs then.

    Raises:
        EngineError: The sandbox itself failed.
    """
    with tempfile.TemporaryDirectory(prefix="rlad-sandbox-", ignore_cleanup_errors=True) as outside:
        Path(outside).chmod(0o711)
        spec = _spec(source, None, "", Path(outside), limits) | {"imports": imports, "inputs": list(inputs)}
        with tempfile.TemporaryFile(dir=outside) as spec_file, tempfile.TemporaryFile(dir=outside) as results_file:
            spec_file.write(json.dumps(spec).encode("utf-8", "surrogatepass"))
            spec_file.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", str(_CHILD), str(spec_file.fileno()), str(results_file.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(spec_file.fileno(), results_file.fileno()),
                env={},
                cwd=outside,
                start_new_session=True,
            )
            is_late = _wait(process, limits.wall_s)
            lines = _contents(results_file, -1).split(b"\n")
    results = []
    for line in lines[:-1]:  # The line after the last line break is incomplete.
        run = json.loads(line)
        reports = [report.encode() for report in run["reports"]]
        results.append(_result(reports, None, limits, is_late=False, stdout=run["stdout"], stderr=run["stderr"]))
    if is_late and len(results) < len(inputs):
        results.append(_result([], None, limits, is_late=True, stdout="", stderr=""))
    elif not results:
        raise EngineError("the sandbox failed before the program started: no results")
    return results


def run_sandboxed(
    source: str, *, limits: SandboxLimits, stdin: str = "", asserts: str | None = None, imports: str = ""
) -> SandboxResult:
    """Run Python source, then the assertions in its namespace.

    Args:
        source: The program.
        limits: Resource limits.
        stdin: Standard input of the program.
        asserts: Python source that runs after the program; None without assertions.
        imports: Python source of imports that run before the program.

    Raises:
        EngineError: The sandbox itself failed.
    """
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="rlad-sandbox-", ignore_cleanup_errors=True) as outside:
        Path(outside).chmod(0o711)  # The program's own user must reach its directory below.
        inside = Path(outside) / "work"
        inside.mkdir(mode=0o700)
        spec = _spec(source, asserts, token, inside, limits) | {"imports": imports}
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
            is_late = _wait(process, limits.wall_s)
            stdout = _contents(stdout_file, limits.file_mib * _MIB).decode("utf-8", "replace")
            stderr = _contents(stderr_file, limits.file_mib * _MIB)[-_STDERR_BYTES:].decode("utf-8", "replace")
            reports = _contents(report_file, _MIB).splitlines()
    return _result(
        reports, token if asserts is not None else None, limits, is_late=is_late, stdout=stdout, stderr=stderr
    )


def _spec(source: str, asserts: str | None, token: str, directory: Path, limits: SandboxLimits) -> dict[str, Any]:
    """Return the specification that `sandbox_child.py` reads."""
    return {
        "caller": os.getpid(),
        "source": source,
        "asserts": asserts,
        "token": token,
        "directory": str(directory),
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_mib * _MIB,
        "file_bytes": limits.file_mib * _MIB,
        "processes": limits.processes,
        "mechanisms": limits.mechanisms,
    }


def _wait(process: subprocess.Popen[bytes], wall_s: float) -> bool:
    """Wait for the program, then kill its process group. Return True if it exceeded the wall time."""
    try:
        process.wait(wall_s)
    except subprocess.TimeoutExpired:
        return True
    finally:
        _kill_group(process)
    return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill all remaining processes of the program's group."""
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
            continue  # The program can write here too, but harms only itself.
    barriers, end = report.get("barriers"), report.get("end")
    if barriers is None and not is_late:
        raise EngineError(f"the sandbox failed before the program started: {stderr.strip() or 'no error output'}")
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
        # The kernel kills when the time counted in clock ticks exceeds the limit. The time it reports afterwards is
        # exact and, on a busy machine, well below the limit.
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
