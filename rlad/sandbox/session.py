"""Sessions: the caller's side of a sandbox's process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from rlad.errors import EngineError
from rlad.sandbox.inside import examiner, filters
from rlad.sandbox.inside.values import Channel, ChannelClosed, TransferError
from rlad.sandbox.limits import MIB, SandboxLimits
from rlad.sandbox.usage import UsageMonitor

_CHILD = Path(__file__).with_name("sandbox_child.py")
# Number of trailing bytes of stderr in results and errors.
_STDERR_BYTES = 2000
_FIRST_CHECK_S, _LAST_CHECK_S = 0.02, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """Result of a program.

    Attributes:
        ended: `exited` with any exit code, `killed` by a signal or for a limit (out of memory, a crash), or `timeout`
            of wall or CPU time.
        exit_code: Exit code; None unless `exited`.
        has_passed: True if the program exited with 0 or, with tests, passed all of them.
        stdout: Output as UTF-8, with invalid bytes replaced.
        stderr: Last 2,000 bytes of the error output.
        barriers: Mechanisms that were active.
        exceeded: Limit on all processes together for which it was killed; None otherwise.
    """

    ended: Literal["exited", "killed", "timeout"]
    exit_code: int | None
    has_passed: bool
    stdout: str
    stderr: str
    barriers: tuple[str, ...]
    exceeded: str | None = None


class SandboxSession:
    """A sandbox's process, which runs programs one after the other, each in a process of its own.

    It does not outlive its creator. After a program that exceeded a limit it is closed.
    """

    def __init__(self, limits: SandboxLimits, *, tests: Any = None, preload: Sequence[str] = ()) -> None:
        """
        Args:
            limits: Limits of each program; `limits.wall_s` is not used here.
            tests: Tests for the examiner (see `rlad.sandbox.inside.examiner.examine`), which no program can read.
            preload: Modules that are imported once, before the restrictions apply.

        Raises:
            EngineError: The process cannot be started.
        """
        self.is_closed = False
        self._limits = limits
        with contextlib.ExitStack() as stack:
            outside = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="rlad-sandbox-", ignore_cleanup_errors=True))
            )
            outside.chmod(0o711)  # The program's own user must reach its directory below.
            self._directory = outside / "work"
            self._directory.mkdir(mode=0o711)
            self._stdin, self._stdout, self._stderr, spec_file, tests_file = (
                stack.enter_context(tempfile.TemporaryFile(dir=outside)) for _ in range(5)
            )
            for file, content in ((spec_file, self._spec(tests_file.fileno(), preload)), (tests_file, tests)):
                file.write(json.dumps(content).encode("utf-8", "surrogatepass"))
                file.seek(0)
            requests_read, self._requests_write = os.pipe()
            stack.callback(_close, self._requests_write)
            self._replies_read, replies_write = os.pipe()
            stack.callback(_close, self._replies_read)
            passed = [spec_file.fileno(), requests_read, replies_write]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-X", "utf8", str(_CHILD), *map(str, passed)],
                    stdin=self._stdin,
                    stdout=self._stdout,
                    stderr=self._stderr,
                    pass_fds=[*passed, tests_file.fileno()],
                    env={},
                    cwd=self._directory,
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineError(f"the sandbox cannot be started: {error}") from error
            finally:
                os.close(requests_read)
                os.close(replies_write)
            self._channel = Channel(self._replies_read, self._requests_write)
            self._monitor = UsageMonitor(self._process.pid, self._directory, limits)
            self._hello: tuple[str, ...] | None = None
            self._resources = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self, deadline: float) -> None:
        """Wait until the process has started and imported its modules.

        Args:
            deadline: Time of `time.monotonic()`.

        Raises:
            EngineError: It failed, or was not ready in time.
        """
        if self._hello is None:
            if not select.select([self._replies_read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.close()
                raise EngineError("the sandbox did not start in time")
            self._hello = tuple(self._receive()["hello"])

    def close(self) -> None:
        """Kill all processes. May be called twice."""
        if self.is_closed:
            return
        self.is_closed = True
        self._monitor.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()  # unlimited wait: the kernel ends a killed process
        self._resources.close()

    def run(
        self, source: str, *, deadline: float, stdin: str = "", imports: str = "", examine: bool = False
    ) -> SandboxResult:
        """Run a program.

        Args:
            source: Python source.
            deadline: Time of `time.monotonic()` at which everything is killed.
            stdin: Standard input.
            imports: Python source of imports that run before it.
            examine: Run the session's tests afterwards, in a process of their own.

        Raises:
            EngineError: The sandbox itself failed.
        """
        data = stdin.encode("utf-8", "replace")
        self._stdin.truncate(0)
        self._stdin.seek(0)
        self._stdin.write(data)
        self._stdin.flush()
        try:
            self._channel.send({"source": source, "imports": imports, "examine": examine})
        except (ChannelClosed, TransferError) as error:
            raise self._failure() from error
        started: dict[str, tuple[str, ...]] = {}
        ends: dict[str, dict[str, Any]] = {}
        checked, interval = time.monotonic(), _FIRST_CHECK_S
        while True:
            now = time.monotonic()
            if now >= deadline:
                return self._stopped("timeout", started)
            if not select.select([self._replies_read], [], [], min(interval, deadline - now))[0]:
                interval = min(_LAST_CHECK_S, 1.5 * interval)
            else:
                message = self._receive()
                if "done" in message:
                    return self._result(started, ends, examine)
                if "hello" in message:
                    self._hello = tuple(message["hello"])
                elif "started" in message:
                    started[message["role"]] = tuple(message["started"])
                else:
                    ends[message["role"]] = message["ended"]
                continue
            if time.monotonic() - checked >= interval:
                exceeded = self._monitor.exceeded(self._barriers(started))
                if exceeded is not None:
                    return self._stopped("timeout" if exceeded == "CPU time" else "killed", started, exceeded)
                checked = time.monotonic()

    def _spec(self, tests_fd: int, preload: Sequence[str]) -> dict[str, Any]:
        limits = self._limits
        return {
            "caller": os.getpid(),
            "directory": str(self._directory),
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_mib * MIB,
            "file_bytes": limits.file_mib * MIB,
            "disk_bytes": limits.disk_mib * MIB,
            "processes": limits.processes,
            "mechanisms": limits.mechanisms,
            "seccomp_library": seccomp_library(),
            "tests_fd": tests_fd,
            "preload": list(preload),
        }

    def _receive(self) -> dict[str, Any]:
        try:
            message: dict[str, Any] = self._channel.receive()
        except (ChannelClosed, TransferError) as error:
            raise self._failure() from error
        return message

    def _failure(self) -> EngineError:
        self._process.wait(10)
        text = _contents(self._stderr, MIB)[-_STDERR_BYTES:].decode("utf-8", "replace").strip()
        self.close()
        return EngineError(f"the sandbox failed before the program started: {text or 'no error output'}")

    def _barriers(self, started: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
        return started.get("program", self._hello or ())

    def _outputs(self) -> dict[str, str]:
        stdout, stderr = (_contents(file, self._limits.file_mib * MIB) for file in (self._stdout, self._stderr))
        return {
            "stdout": stdout.decode("utf-8", "replace"),
            "stderr": stderr[-_STDERR_BYTES:].decode("utf-8", "replace"),
        }

    def _stopped(
        self, ended: Literal["killed", "timeout"], started: dict[str, tuple[str, ...]], exceeded: str | None = None
    ) -> SandboxResult:
        """Close the session in the midst of a run and return the run's result."""
        outputs = self._outputs()
        barriers = self._barriers(started)
        self.close()
        return SandboxResult(
            ended=ended, exit_code=None, has_passed=False, barriers=barriers, exceeded=exceeded, **outputs
        )

    def _result(
        self, started: dict[str, tuple[str, ...]], ends: dict[str, dict[str, Any]], examine: bool
    ) -> SandboxResult:
        outputs = self._outputs()
        if "program" not in started:
            self.close()
            raise EngineError(
                f"the sandbox failed before the program started: {outputs['stderr'].strip() or 'no error output'}"
            )
        end = ends.get("program", {"signal": signal.SIGKILL, "exit_code": None, "cpu_s": 0.0, "was_stopped": False})
        has_passed = ends.get("examiner", {}).get("exit_code") == examiner.PASSED if examine else end["exit_code"] == 0
        ended: Literal["exited", "killed", "timeout"] = "exited"
        if self._is_out_of_cpu(end) or self._is_out_of_cpu(ends.get("examiner", {})):
            ended = "timeout"
        elif end["signal"] is not None and not end["was_stopped"]:
            ended = "killed"
        return SandboxResult(
            ended=ended,
            exit_code=end["exit_code"] if ended == "exited" else None,
            has_passed=has_passed and ended == "exited",
            barriers=started["program"],
            **outputs,
        )

    def _is_out_of_cpu(self, end: dict[str, Any]) -> bool:
        """Return whether the kernel killed a process for its CPU time.

        The kernel kills when the time counted in clock ticks exceeds the limit. The time it reports afterwards is
        exact and, on a busy machine, well below the limit.
        """
        is_killed = end.get("signal") in (signal.SIGKILL, signal.SIGXCPU) and not end["was_stopped"]
        return is_killed and bool(end["cpu_s"] > 0.5 * self._limits.cpu_s)


@cache
def seccomp_library() -> str | None:
    """Return the name of libseccomp, if both it and its binding are installed."""
    try:
        import pyseccomp  # noqa: F401
    except (ImportError, RuntimeError):  # the binding raises RuntimeError without the library
        return None
    return filters.find_library()


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _contents(file: IO[bytes], limit: int) -> bytes:
    return os.pread(file.fileno(), limit, 0)
