"""The untrusted program: how a forked process loses its permissions and what it runs then."""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlad.sandbox.inside import filters, kernel
from rlad.sandbox.inside.values import Channel

_NETWORK_EVENTS = frozenset(
    {
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
    }
)
_PROCESS_EVENTS = frozenset(
    {
        "os.fork",
        "os.forkpty",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "os.kill",
        "os.killpg",
        "signal.pthread_kill",
        "subprocess.Popen",
        "pty.spawn",
        "ctypes.dlopen",
        "ctypes.dlsym",
        "ctypes.dlsym/handle",
        "ctypes.call_function",
        "ctypes.string_at",
        "ctypes.cdata/buffer",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The work of a process, done once it is restricted.

    Attributes:
        source, imports: The program, and imports that run before it.
        channel: Descriptors to read from and write to the examiner; None without an examination.
        tests_fd: Descriptor of the tests, for the examiner itself; None for a program.
    """

    source: str = ""
    imports: str = ""
    channel: tuple[int, int] | None = None
    tests_fd: int | None = None

    @property
    def descriptors(self) -> set[int]:
        """Descriptors that the process keeps."""
        tests = set() if self.tests_fd is None else {self.tests_fd}
        return {0, 1, 2, *(self.channel or ()), *tests}


def restrict(spec: dict[str, Any], directory: str, barriers: list[str]) -> list[str]:
    """Apply all restrictions to this process and return the active barriers.

    Args:
        spec: Limits, and libseccomp's name.
        directory: The process's working directory, the only one that it may write to.
        barriers: Barriers that it has already.
    """
    kernel.forbid_new_privileges()
    found = list(barriers)
    if os.geteuid() == 0 and "user_namespace" not in found:
        found += kernel.drop_root(directory, can_keep_reading="landlock_files" in found)
    else:
        kernel.set_capabilities(0)
    kernel.die_with_parent(None)  # must follow the change of user, which clears it
    found += kernel.limit_resources(spec, found)
    os.chdir(directory)
    can_fork = "process_namespace" in found
    if "seccomp" in spec["mechanisms"]:
        found += filters.restrict_system_calls(spec["seccomp_library"], can_fork=can_fork)
    # Without seccomp, programs that lack the hook below must not be started unless the network is isolated. Root is
    # exempt from the process limit.
    is_limited = os.getuid() != 0 or "user_namespace" in found
    is_isolated = "seccomp" in found or (is_limited and "network_namespace" in found)
    _forbid(_NETWORK_EVENTS if is_isolated else _NETWORK_EVENTS | _PROCESS_EVENTS)
    if not is_isolated:
        # A module that is loaded already would need no permission to be used.
        for name in ("ctypes", "_ctypes"):
            vars(sys.modules.pop(name)).clear()
        sys.modules["ctypes"] = None  # type: ignore[assignment]  # an import raises ImportError
    return [*found, "audit_hook"]


def prepare(job: Job) -> tuple[list[Any], dict[str, Any], Callable[[], None]]:
    """Return what the process executes: code, the namespace to execute it in, and a function to call afterwards.

    The sandbox's modules, and the C library's functions that they hold, are out of the program's reach then.
    """
    module = types.ModuleType("__main__")
    finish: Callable[[], None] = _finish
    if job.tests_fd is not None:
        from rlad.sandbox.inside import examiner

        size = os.fstat(job.tests_fd).st_size
        tests = json.loads(os.pread(job.tests_fd, size, 0))
        os.close(job.tests_fd)
        assert job.channel is not None
        finish = functools.partial(examiner.examine, Channel(*job.channel), tests)
    elif job.channel is not None:
        from rlad.sandbox.inside.serving import ProgramServer

        finish = ProgramServer(Channel(*job.channel), module.__dict__).serve
    codes = [
        compile(text, name, "exec", dont_inherit=True)
        for text, name in ((job.imports, "imports.py"), (job.source, "solution.py"))
        if text
    ]
    sys.modules["__main__"], sys.argv = module, ["solution.py"]
    _forget()
    return codes, module.__dict__, finish


def _finish() -> None:
    """Do nothing after a program without an examination."""


def _forget() -> None:
    """Remove the sandbox's own modules from reach."""
    names = [name for name in sys.modules if name == "pyseccomp" or name.partition(".")[0] == "rlad"]
    modules = {name: sys.modules.pop(name) for name in names}
    for name, module in modules.items():
        if name.rpartition(".")[2] in ("kernel", "filters", "server", "pyseccomp"):
            vars(module).clear()
        for inner in ("kernel", "filters", "server"):
            vars(module).pop(inner, None)
    del modules, module
    gc.collect()  # the C library's functions refer to the library, and it to them


def _forbid(events: frozenset[str]) -> None:
    """Install an audit hook that raises PermissionError for the events."""

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if event in events:
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(refuse)
