"""Kernel mechanisms of the sandbox: namespaces, Landlock, an own user, capabilities and resource limits.

Each function applies one mechanism to the calling process and returns the barriers that are active afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import stat
import struct
import sys
from typing import Any

_CLONE_NEWNS, _CLONE_NEWIPC = 0x00020000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 1 << 1, 1 << 2, 1 << 14, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 38
_CAP_DAC_READ_SEARCH = 1 << 2
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
# These numbers are the same on every architecture.
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read file, read directory
_LANDLOCK_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2  # execute, write, read: the rights that apply to files
_LANDLOCK_NET_TCP = 1 << 0 | 1 << 1  # bind, connect
_LANDLOCK_SCOPES = 1 << 0 | 1 << 1  # abstract unix sockets, signals
# Nothing of /proc: it would show other processes of the same user.
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
)
# As root, every sandbox gets its own user, so that the process limit counts only its own processes.
_FIRST_UID = 1_900_000_000

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """Return the version of Landlock's interface; 0 or less without Landlock."""
    abi: int = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    return abi


def die_with_parent(parent: int | None) -> bool:
    """Have the kernel kill this process when its parent dies. Return False if the parent is dead already.

    Args:
        parent: Process id of the parent; None inside a process namespace, where it is not visible.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return parent is None or os.getppid() == parent


def set_dumpable(is_dumpable: bool) -> None:
    """Permit or forbid other processes of the same user to read this process's memory and descriptors."""
    _prctl(_PR_SET_DUMPABLE, is_dumpable)


def forbid_new_privileges() -> None:
    """Forbid gaining privileges, which Landlock and seccomp require."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def enter_shared_namespaces() -> list[str]:
    """Enter namespaces without network, and with mounts and System V memory of their own.

    Uses root permissions, or else a user namespace, if permitted. All runs of a program share them.
    """
    uid, gid = os.getuid(), os.getgid()
    inner = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWNS
    if _libc.unshare(inner) == 0:
        return ["network_namespace", "ipc_namespace", "mount_namespace"]
    if _libc.unshare(_CLONE_NEWUSER | inner) == 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
        return ["network_namespace", "ipc_namespace", "mount_namespace", "user_namespace"]
    for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET):  # a container may permit fewer
        if _libc.unshare(flags) == 0:
            return ["network_namespace", *(["user_namespace"] if flags & _CLONE_NEWUSER else [])]
    return []


def enter_process_namespace() -> list[str]:
    """Put the next child of this process into a process namespace, none of whose processes outlives it."""
    return ["process_namespace"] if _libc.unshare(_CLONE_NEWPID) == 0 else []


def mount_limited_files(directory: str, total_bytes: int) -> list[str]:
    """Mount a memory file system of limited total size at `directory`, in this process's mount namespace."""
    if _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return []
    options = f"size={total_bytes},nr_inodes=4096,mode=711".encode()
    if _libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", _MS_NOSUID | _MS_NODEV, options) != 0:
        return []
    os.chdir(directory)
    return ["limited_files"]


def restrict_files(directory: str) -> list[str]:
    """Restrict file access and TCP with Landlock.

    The program can read only what Python needs, write only in the sandbox's directory, and use no TCP. ABI 1 covers
    files, ABI 3 truncation, ABI 4 TCP, ABI 6 signals.
    """
    abi = landlock_abi()
    if abi < 1:
        return []
    every_access = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
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


def drop_root(directory: str, *, can_keep_reading: bool) -> list[str]:
    """Become a user that does not exist elsewhere.

    If that user cannot read Python's library (an interpreter below /root), it keeps the single capability to read,
    provided that Landlock restricts the paths.
    """
    uid = _FIRST_UID + int.from_bytes(os.urandom(3))
    try:
        os.chown(directory, uid, uid)
        os.setgroups([])
        os.setegid(uid)
        os.seteuid(uid)
    except OSError:  # A container's root may have no other users.
        with contextlib.suppress(OSError):
            os.setegid(0)
            os.chown(directory, 0, 0)
        set_capabilities(0)
        return []
    can_read = os.access(os.__file__, os.R_OK, effective_ids=True)
    os.seteuid(0)
    if not can_read and not can_keep_reading:
        os.setegid(0)
        os.chown(directory, 0, 0)
        set_capabilities(0)
        return []
    _prctl(_PR_SET_KEEPCAPS, not can_read)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if not set_capabilities(0 if can_read else _CAP_DAC_READ_SEARCH) and not can_read:
        raise OSError("the capability to read Python's library cannot be kept")
    return ["own_user"]


def set_capabilities(kept: int) -> bool:
    """Set the capabilities to the bits in `kept`. Return True on success."""
    number = _SYS_CAPSET.get(os.uname().machine)
    return (
        number is not None
        and _libc.syscall(number, struct.pack("Ii", 0x20080522, 0), struct.pack("6I", kept, kept, 0, 0, 0, 0)) == 0
    )


def limit_resources(spec: dict[str, Any], barriers: list[str]) -> list[str]:
    """Set the resource limits of this process.

    The kernel counts processes over a whole user, so that limit is set only for a user that is the sandbox's own. The
    caller counts threads otherwise.
    """
    limits = {
        resource.RLIMIT_AS: spec["memory_bytes"],
        resource.RLIMIT_CPU: spec["cpu_s"],
        resource.RLIMIT_FSIZE: spec["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    is_own = "own_user" in barriers or "user_namespace" in barriers
    if is_own:
        limits[resource.RLIMIT_NPROC] = spec["processes"]
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))
    return ["process_limit"] if is_own else []


def _prctl(option: int, value: int) -> None:
    _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)
