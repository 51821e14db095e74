"""Run a command as a pod runs it: uid 1000, without capabilities, and with a filter that refuses new namespaces.

As root, the interpreter may lie below a directory that the user cannot enter; a mount namespace shows it to the user.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import tempfile
from pathlib import Path

import pyseccomp

_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
_NEW_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_UID = 1000
_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if value is None else value.encode() for value in (source, target, kind, data)]
    if _libc.mount(*encoded[:3], flags, encoded[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def _show_interpreter() -> None:
    prefix = Path(sys.base_prefix)
    hidden = next((path for path in reversed(prefix.parents) if not path.stat().st_mode & 0o001), None)
    if hidden is None:
        return
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    kept = tempfile.mkdtemp()
    _mount(str(prefix), kept, None, _MS_BIND | _MS_REC)
    _mount("tmpfs", str(hidden), "tmpfs", 0, "mode=755")
    prefix.mkdir(parents=True)
    _mount(kept, str(prefix), None, _MS_BIND | _MS_REC)


def main() -> None:
    """Enter the state and become the command."""
    if os.geteuid() == 0:
        _show_interpreter()
        os.setgroups([])
        os.setresgid(_UID, _UID, _UID)
        os.setresuid(_UID, _UID, _UID)
    refusing = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    for name in ("unshare", "setns", "mount", "keyctl"):
        refusing.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    for flag in _NEW_NAMESPACES:
        refusing.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    refusing.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    refusing.load()
    os.environ["HOME"] = "/nonexistent"
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
