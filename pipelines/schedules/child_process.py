"""Run a command that must not outlive the process that started it: `python -m pipelines.schedules.child_process PARENT_PID COMMAND...`.

The kernel kills it the moment its parent is gone, however that went; a ticker that was killed leaves no run behind that nobody watches. (A hook between
fork and exec would do the same without this file, but not in a process with threads.) Elsewhere than on Linux the command runs without this.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != int(parent):  # it was gone before the kernel knew
            sys.exit(f"the process {parent} that started this has ended")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
