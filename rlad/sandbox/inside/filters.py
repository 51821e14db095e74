"""System calls that a program may make: a seccomp filter, made by libseccomp through pyseccomp.

What is not listed does not exist for the program (ENOSYS, so that the C library falls back). What a program could use
to leave the sandbox is refused by name (EPERM), so that the error is clear.
"""

from __future__ import annotations

import ctypes.util
import errno
import fcntl
import os
import termios
from collections.abc import Iterable
from typing import Any

# Argument layouts below hold on these machines.
MACHINES = ("x86_64", "aarch64")

_ALLOWED = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range dup dup2 dup3 lseek
stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir
getdents getdents64 mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat creat
ftruncate fsync fdatasync flock fadvise64 copy_file_range sendfile umask
mmap munmap mremap mprotect madvise brk msync mincore membarrier
pipe pipe2 eventfd eventfd2 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select
pselect6 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime
recvfrom recvmsg shutdown getsockopt getsockname getpeername
nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getitimer setitimer alarm pause
timer_create timer_settime timer_gettime timer_getoverrun timer_delete
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending rt_sigsuspend sigaltstack restart_syscall
futex futex_waitv set_robust_list set_tid_address rseq arch_prctl
sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min
wait4 waitid exit exit_group getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp
getpgid getsid setsid setpgid getpriority uname sysinfo getrusage getcpu getrandom getrlimit setrlimit capget
"""
_REFUSED = """
execve execveat ptrace process_vm_readv process_vm_writev process_madvise kcmp
socket connect bind listen accept accept4 sendmsg sendmmsg
shmget shmat shmctl shmdt msgget msgsnd msgrcv msgctl semget semop semtimedop semctl mq_open mq_unlink mq_notify
keyctl add_key request_key bpf userfaultfd perf_event_open io_uring_setup io_uring_enter io_uring_register
mount umount2 pivot_root chroot unshare setns fsopen fsmount fsconfig move_mount open_tree mount_setattr
open_by_handle_at name_to_handle_at memfd_create memfd_secret pidfd_open pidfd_getfd pidfd_send_signal
tkill rt_sigqueueinfo rt_tgsigqueueinfo truncate mknod mknodat chmod fchmod fchmodat fchmodat2 chown lchown fchown
fchownat utime utimes utimensat futimesat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset personality
sched_setaffinity sched_setscheduler sched_setattr sched_setparam setpriority ioprio_set
init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff quotactl acct syslog
sethostname setdomainname iopl ioperm modify_ldt fanotify_init inotify_init inotify_init1 landlock_restrict_self
"""
_FCNTL = (
    *(fcntl.F_DUPFD, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL),
    *(fcntl.F_GETLK, fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW),
    *(fcntl.F_DUPFD_CLOEXEC, fcntl.F_SETPIPE_SZ, fcntl.F_GETPIPE_SZ),
)
_IOCTL = (termios.TCGETS, termios.TIOCGWINSZ, termios.FIONREAD, termios.FIONBIO, termios.FIOCLEX, termios.FIONCLEX)
_PRCTL = (3, 15, 16, 23, 0x53564D41)  # get dumpable, set name, get name, read a capability's bound, name memory
_CLONE_THREAD = 0x00010000
# New namespaces of every kind, and a child of the parent instead of this process.
_CLONE_REFUSED = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00008000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
_WORD = 0xFFFFFFFF


def find_library() -> str | None:
    """Return the name of the installed libseccomp; None without one, or on a machine that is not supported."""
    return ctypes.util.find_library("seccomp") if os.uname().machine in MACHINES else None


def restrict_system_calls(library: str | None, *, can_fork: bool) -> list[str]:
    """Apply the filter to this process and its descendants, and return the active barriers.

    Args:
        library: Name of libseccomp, from `find_library`; None to apply nothing.
        can_fork: Permit new processes. Without a process namespace, processes could outlive the program and escape the
            limits, so that only threads are permitted.
    """
    if library is None:
        return []
    search, ctypes.util.find_library = ctypes.util.find_library, lambda name: library if name == "seccomp" else None
    try:
        import pyseccomp  # which would start programs to find the library
    finally:
        ctypes.util.find_library = search
    found = pyseccomp.SyscallFilter(defaction=pyseccomp.ERRNO(errno.ENOSYS))
    found.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for name in _ALLOWED.split():
        _add(pyseccomp, found, pyseccomp.ALLOW, name)
    for name in [*_REFUSED.split(), *([] if can_fork else ["fork", "vfork"])]:
        _add(pyseccomp, found, refuse, name)
    _add_conditions(pyseccomp, found, can_fork=can_fork)
    try:
        found.load()
    except OSError:  # The kernel, or the container's runtime, permits no filters.
        return []
    return ["seccomp"]


def _add_conditions(library: Any, found: Any, *, can_fork: bool) -> None:
    """Add the calls that depend on their arguments."""

    def when(index: int, value: int, mask: int = _WORD) -> Any:
        return library.Arg(index, library.MASKED_EQ, mask, value)

    def allow(name: str, *conditions: Any) -> None:
        _add(library, found, library.ALLOW, name, conditions)

    for command in _FCNTL:
        allow("fcntl", when(1, command))
    for request in _IOCTL:
        allow("ioctl", when(1, request))
    for option in _PRCTL:
        allow("prctl", when(0, option))
    # Opening for reading with truncation would empty files that Landlock before ABI 3 protects only from writing.
    for name, index in (("open", 1), ("openat", 2)):
        allow(name, when(index, 0, os.O_TRUNC))
        for writes in (os.O_WRONLY, os.O_RDWR):
            allow(name, when(index, os.O_TRUNC | writes, os.O_TRUNC | os.O_ACCMODE))
    allow("clone", when(0, _CLONE_THREAD, _CLONE_THREAD | _CLONE_REFUSED))
    if can_fork:
        allow("clone", when(0, 0, _CLONE_REFUSED | _CLONE_THREAD))
        allow("fork")
        allow("vfork")
    else:
        _add(library, found, library.ERRNO(errno.EPERM), "clone", [when(0, 0, _CLONE_THREAD)])
    # The program's own process only. Processes that it forks cannot send signals.
    allow("kill", when(0, os.getpid()))
    allow("tgkill", when(0, os.getpid()))
    allow("prlimit64", when(0, 0))
    allow("socketpair", when(0, _AF_UNIX), when(1, _SOCK_STREAM, _SOCK_TYPE_MASK))
    allow("sendto", library.Arg(4, library.EQ, 0))  # to the other end of a pair, not to an address


def _add(library: Any, found: Any, action: int, name: str, conditions: Iterable[Any] = ()) -> None:
    """Add a rule, unless this machine or this libseccomp has no such call. Then the default refuses it."""
    try:
        number = library.resolve_syscall(library.system_arch(), name)
    except (OSError, ValueError):
        return
    if number >= 0:
        found.add_rule(action, number, *conditions)
