# ruff: noqa: E501 - programs keep their own line breaks
"""Programs that try to leave the sandbox, each printing what it reached as JSON. Also runs them from a command line."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rlad.sandbox.limits import SandboxLimits
from rlad.verifiers.sandbox import run_sandboxed

LIMITS = SandboxLimits(wall_s=20, cpu_s=2, memory_mib=512, file_mib=1, processes=8, disk_mib=4)

# By number on x86_64 and by name for the report, with arguments that would succeed if the call were permitted.
SYSTEM_CALLS = """
import ctypes, json, os, platform
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "socket": (41, 198, (2, 1, 0)), "datagram socket": (41, 198, (2, 2, 0)), "unix socket": (41, 198, (1, 1, 0)),
    "netlink socket": (41, 198, (16, 3, 0)), "datagram pair": (53, 199, (1, 2, 0, ctypes.create_string_buffer(8))),
    "ptrace": (101, 117, (0, 0, 0, 0)), "process_vm_readv": (310, 270, (os.getpid(), 0, 0, 0, 0, 0)),
    "shmget": (29, 194, (0, 4096, 0o1600)), "msgget": (68, 186, (0, 0o1600)), "semget": (64, 190, (0, 1, 0o1600)),
    "keyctl": (250, 219, (0, -3, 1)), "add_key": (248, 217, (b"user", b"k", b"v", 1, -3)),
    "bpf": (321, 280, (0, 0, 0)), "userfaultfd": (323, 282, (1,)), "io_uring_setup": (425, 425, (1, bytes(120))),
    "mount": (165, 40, (b"none", b"/tmp", b"tmpfs", 0, 0)), "unshare": (272, 97, (0x10000000,)),
    "setns": (308, 268, (0, 0)), "chroot": (161, 51, (b".",)), "memfd_create": (319, 279, (b"m", 0)),
    "execve": (59, 221, (b"/bin/true", 0, 0)), "execveat": (322, 281, (-100, b"/bin/true", 0, 0, 0)),
    "pidfd_open": (434, 434, (os.getpid(), 0)), "tkill": (200, 130, (os.getpid(), 0)),
    "chmod": (90, 53, (b".", 0o700)), "perf_event_open": (298, 241, (bytes(128), 0, -1, -1, 0)),
    "personality": (135, 92, (0xFFFFFFFF,)), "open_by_handle_at": (304, 265, (0, bytes(16), 0)),
    "name_to_handle_at": (303, 264, (-100, b"/", bytes(200), bytes(8), 0)), "clone3": (435, 435, (bytes(88), 88)),
    "sched_setaffinity": (203, 122, (0, 8, b"\\1" + bytes(7))), "setpriority": (141, 140, (0, 0, 5)),
    "truncate": (76, 45, (b"own", 0)), "landlock_create_ruleset": (444, 444, (0, 0, 1)),
    "clear parent death signal": (157, 167, (1, 0, 0, 0, 0)), "prlimit of another": (302, 261, (os.getppid() or 1, 7, 0, bytes(16))),
    "own signal to a group": (62, 129, (0, 0)), "parent": (62, 129, (os.getppid() or 2, 0)), "all": (62, 129, (-1, 0)),
    "fcntl owner": (72, 25, (1, 8, 1)), "terminal input": (16, 29, (0, 0x5412, b"x")),
}
open("own", "w").close()
machine = 0 if platform.machine() == "x86_64" else 1
print(json.dumps([name for name, call in calls.items() if libc.syscall(call[machine], *call[2]) >= 0]))
"""
PROGRAMS = {
    "system_calls": SYSTEM_CALLS,
    "shell": "import subprocess\\nprint(subprocess.run(['/bin/sh', '-c', 'echo here'], capture_output=True).stdout)".replace("\\n", "\n"),
    "files": "import glob\nfound = []\nfor path in ['/etc/passwd', '/proc/1/environ', '/proc/self/environ', '/proc/self/mem', '/proc/meminfo', "
    "'/sys/kernel/notes', *glob.glob('/tmp/*')]:\n    try: open(path).read(1); found.append(path)\n    except OSError: pass\nprint(found)",
    "three threads": "import threading, time\nthreads = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(3)]\n"
    "for thread in threads: thread.start()\nfor thread in threads: thread.join()\nprint('three')",
    "many threads": "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=(3,)).start()\nprint('twenty')\ntime.sleep(3)",
    "many files": "import time\nfor number in range(12):\n    with open(str(number), 'wb') as file: file.write(bytes(1 << 20))\n"
    "    time.sleep(0.03)\nprint('written')",
    "deleted files": "import os, time\nkept = []\nfor number in range(12):\n    kept.append(open('file', 'wb'))\n    kept[-1].write(bytes(1 << 20))\n"
    "    kept[-1].flush()\n    os.unlink('file')\n    time.sleep(0.03)\nprint('written')",
    "memory of a tree": "import os, time\nfor _ in range(3):\n    if os.fork() == 0: break\nfilled = bytearray(os.urandom(1) * (300 << 20))\n"
    "time.sleep(1)\nprint('filled')",
    "processor time of a tree": "import os\nfor _ in range(3):\n    if os.fork() == 0: break\nend = sum(os.times()[:2]) + 1.6\n"
    "while sum(os.times()[:2]) < end: pass\nfor _ in range(3):\n    try: os.wait()\n    except OSError: pass\nprint('spun')",
    "event loop": "import asyncio\nprint(asyncio.run(asyncio.sleep(0.01, 'slept')))",
    "frames": "import sys, gc\nframe, names = sys._getframe(), set()\nwhile frame is not None:\n    names |= {*frame.f_globals, *frame.f_locals}\n"
    "    frame = frame.f_back\nprint(sorted(name for name in names if 'libc' in name or name in ('kernel', 'ctypes', 'spec')),\n"
    "      [name for name in sys.modules if name.startswith('rlad') or name == 'pyseccomp'],\n"
    "      [found for found in gc.get_objects() if type(found).__name__ == '_FuncPtr' or (type(found).__name__ == 'CDLL' and found._handle)])",
}  # fmt: skip


def results() -> dict[str, dict[str, object]]:
    """Run every program and return the fields of its result."""
    return {name: asdict(run_sandboxed(source, limits=LIMITS)) for name, source in PROGRAMS.items()}


if __name__ == "__main__":
    json.dump(results(), sys.stdout)
