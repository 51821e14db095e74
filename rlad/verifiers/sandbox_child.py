"""Child process of the sandbox: runs one untrusted Python program.

`rlad.verifiers.sandbox` starts this file with `python -I`; it imports nothing of rlad. It consists of two processes.
The outer one creates namespaces, waits for the inner one and reports how it ended. The inner one applies every
restriction to itself and then becomes the untrusted program. Each mechanism is used if the machine permits it, and the
active ones are reported.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import struct
import sys
import types
from typing import Any

_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_CAP_DAC_READ_SEARCH = 1 << 2
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
# These numbers are the same on every architecture.
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read file, read directory
_LANDLOCK_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2  # execute, write, read: the rights that apply to files
_LANDLOCK_NET_TCP = 1 << 0 | 1 << 1  # bind, connect
_LANDLOCK_SCOPES = 1 << 0 | 1 << 1  # abstract unix sockets, signals
_READABLE = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/proc/self",
)
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
        "subprocess.Popen",
        "pty.spawn",
        "ctypes.dlopen",
        "ctypes.dlsym",
    }
)
# As root, every sandbox gets its own user, so that the process limit counts only its own processes.
_FIRST_UID = 1_900_000_000

# Maximum size of the outputs of all runs of a program together.
_MAX_OUTPUT_BYTES = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read the specification, run the program in the inner process, and report how it ended."""
    spec_fd, report_fd = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(spec_fd, encoding="utf-8") as file:
        spec = json.load(file)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != spec["caller"]:
        return  # The caller died before the parent-death signal was set.
    # By default, numpy would start one thread per core.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    if "inputs" in spec:
        _run_inputs(spec, report_fd)
    else:
        _run_and_report(spec, report_fd)


def _run_and_report(spec: dict[str, Any], report_fd: int, shared: list[str] | None = None) -> None:
    """Run the program in an inner process and report how it ended.

    Args:
        spec: The specification.
        report_fd: File descriptor of the report.
        shared: Barriers that this process has already, for several runs of a program.
    """
    barriers = list(shared or [])
    if "namespaces" in spec["mechanisms"]:
        barriers += _new_process_namespace() if "network_namespace" in barriers else _new_namespaces()
    outer = os.getpid()
    inner = os.fork()
    if inner == 0:
        _become_program(spec, report_fd, outer, barriers)
        return
    _, status = os.waitpid(inner, 0)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    is_killed = os.WIFSIGNALED(status)
    end = {
        "exit_code": None if is_killed else os.WEXITSTATUS(status),
        "signal": os.WTERMSIG(status) if is_killed else None,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }
    os.write(report_fd, b"\n" + json.dumps({"end": end}).encode() + b"\n")


def _run_inputs(spec: dict[str, Any], results_fd: int) -> None:
    """Run the program once for each input, each time in a fork of this process, until one fails.

    A program cannot write to the results: it gets only the report of its own run.
    """
    total_bytes = 0
    shared = _new_network_namespace() if "namespaces" in spec["mechanisms"] else []
    if "landlock" in spec["mechanisms"]:
        # One ruleset for all runs, since a ruleset in each process namespace delays the end of the run by 0.1 s.
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        shared += _landlock(spec["directory"])
    for number, text in enumerate(spec["inputs"]):
        directory = f"{spec['directory']}/{number}"
        os.mkdir(directory, 0o700)  # noqa: PTH102
        files = {name: os.memfd_create(name, 0) for name in ("stdin", "stdout", "stderr", "report")}
        with os.fdopen(files["stdin"], "wb", closefd=False) as file:
            file.write(text.encode("utf-8", "replace"))
        os.lseek(files["stdin"], 0, os.SEEK_SET)
        runner_of = os.getpid()
        runner = os.fork()
        if runner == 0:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != runner_of:
                os._exit(1)
            os.close(results_fd)
            for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
                os.dup2(files[name], descriptor)
                os.close(files[name])
            _run_and_report({**spec, "directory": directory}, files["report"], shared)
            return
        os.waitpid(runner, 0)
        contents = {}
        for name, descriptor in files.items():
            os.lseek(descriptor, 0, os.SEEK_SET)
            with os.fdopen(descriptor, "rb") as file:
                contents[name] = file.read(spec["file_bytes"]).decode("utf-8", "replace")
        total_bytes += len(contents["stdout"])
        run = {
            "reports": contents["report"].splitlines(),
            "stdout": contents["stdout"],
            "stderr": contents["stderr"][-2000:],
        }
        with os.fdopen(results_fd, "ab", closefd=False) as file:
            file.write(json.dumps(run).encode() + b"\n")
        if total_bytes > _MAX_OUTPUT_BYTES or '"exit_code": 0' not in contents["report"]:
            return


def _new_namespaces() -> list[str]:
    """Enter namespaces without network, whose processes cannot outlive their first one. Return the active barriers.

    Uses root permissions, or else a user namespace, if permitted.
    """
    for flags in (_CLONE_NEWNET | _CLONE_NEWPID, _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWPID):
        if _libc.unshare(flags) == 0:
            return ["network_namespace", "process_namespace", *(["user_namespace"] if flags & _CLONE_NEWUSER else [])]
    return []


def _new_network_namespace() -> list[str]:
    """Enter a network namespace that all runs of a program share. Return the active barriers."""
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):
        if _libc.unshare(flags) == 0:
            return ["network_namespace", *(["user_namespace"] if flags & _CLONE_NEWUSER else [])]
    return []


def _new_process_namespace() -> list[str]:
    return ["process_namespace"] if _libc.unshare(_CLONE_NEWPID) == 0 else []


def _become_program(spec: dict[str, Any], report_fd: int, outer: int, barriers: list[str]) -> None:
    """Apply all restrictions to this process and run the program in it."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in spec["mechanisms"] and "landlock_files" not in barriers:
        barriers += _landlock(spec["directory"])
    if os.geteuid() == 0 and "user_namespace" not in barriers:
        barriers += _drop_root(spec["directory"], can_keep_reading="landlock_files" in barriers)
    else:
        _set_capabilities(0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # must follow the change of user, which clears it
    if "process_namespace" not in barriers and os.getppid() != outer:
        os._exit(1)
    limits = {
        resource.RLIMIT_AS: spec["memory_bytes"],
        resource.RLIMIT_CPU: spec["cpu_s"],
        resource.RLIMIT_FSIZE: spec["file_bytes"],
        resource.RLIMIT_NPROC: spec["processes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    # Root is exempt from the process limit. If the kernel does not isolate the network, programs without this hook must
    # not be started.
    is_limited = os.getuid() != 0 or "user_namespace" in barriers
    _forbid(_NETWORK_EVENTS if is_limited and "network_namespace" in barriers else _NETWORK_EVENTS | _PROCESS_EVENTS)
    barriers.append("audit_hook")
    os.chdir(spec["directory"])
    os.write(report_fd, json.dumps({"barriers": barriers}).encode() + b"\n")
    _run(spec["source"], spec["imports"], spec["asserts"], spec["token"], report_fd)


def _landlock(directory: str) -> list[str]:
    """Restrict file access and TCP with Landlock. Return the active barriers.

    The program can read only what Python needs, write only in the sandbox's directory, and use no TCP. ABI 1 covers
    files, ABI 4 TCP, ABI 6 signals.
    """
    abi = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return []
    every_access = (1 << {1: 13, 2: 14}.get(abi, 15)) - 1
    attributes = struct.pack(
        "QQQ", every_access, _LANDLOCK_NET_TCP if abi >= 4 else 0, _LANDLOCK_SCOPES if abi >= 6 else 0
    )
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return []
    readable = {sys.prefix, sys.base_prefix, sys.exec_prefix, *(path for path in sys.path if path), *_READABLE}
    for path, access in [
        *((path, _LANDLOCK_READ) for path in readable),
        (directory, every_access & ~(1 << 0)),
        ("/dev/null", 1 << 1 | 1 << 2),
    ]:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # The path does not exist on this machine.
            continue
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            access &= _LANDLOCK_OF_FILES
        _libc.syscall(_SYS_LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, opened), 0)
        os.close(opened)
    is_restricted = _libc.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return ["landlock_files", *(["landlock_tcp"] if abi >= 4 else [])] if is_restricted else []


def _drop_root(directory: str, *, can_keep_reading: bool) -> list[str]:
    """Become a user that does not exist elsewhere. Return the active barriers.

    If that user cannot read Python's library (an interpreter below /root), it keeps the single capability to read,
    provided that Landlock restricts the paths.
    """
    uid = _FIRST_UID + int.from_bytes(os.urandom(3))
    os.chown(directory, uid, uid)
    try:
        os.setgroups([])
        os.setegid(uid)
        os.seteuid(uid)
    except OSError:  # A container's root may have no other users.
        os.chown(directory, 0, 0)
        _set_capabilities(0)
        return []
    can_read = os.access(os.__file__, os.R_OK, effective_ids=True)
    os.seteuid(0)
    if not can_read and not can_keep_reading:
        os.setegid(0)
        os.chown(directory, 0, 0)
        _set_capabilities(0)
        return []
    _prctl(_PR_SET_KEEPCAPS, not can_read)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if not _set_capabilities(0 if can_read else _CAP_DAC_READ_SEARCH) and not can_read:
        raise OSError("the capability to read Python's library cannot be kept")
    return ["own_user"]


def _set_capabilities(kept: int) -> bool:
    """Set the capabilities to the bits in `kept`. Return True on success."""
    number = _SYS_CAPSET.get(os.uname().machine)
    return (
        number is not None
        and _libc.syscall(number, struct.pack("Ii", 0x20080522, 0), struct.pack("6I", kept, kept, 0, 0, 0, 0)) == 0
    )


def _prctl(option: int, value: int) -> None:
    _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _forbid(events: frozenset[str]) -> None:
    """Install an audit hook that raises PermissionError for the events."""

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if event in events:
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(refuse)


def _run(source: str, imports: str, asserts: str | None, token: str, report_fd: int) -> None:
    """Run the program as `__main__`, then the assertions, and report the token if they passed."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv = module, ["solution.py"]
    exec(compile(imports, "imports.py", "exec", dont_inherit=True), module.__dict__)
    exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
    if asserts is not None:
        exec(compile(asserts, "tests.py", "exec", dont_inherit=True), module.__dict__)
        # A program that exits early never reports the token.
        os.write(report_fd, b"\n" + json.dumps({"passed": token}).encode() + b"\n")


if __name__ == "__main__":
    main()
