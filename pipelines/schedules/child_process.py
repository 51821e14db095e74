"""Run a command that ends with its parent process: `python -m pipelines.schedules.child_process PARENT_PID COMMAND...`.

On Linux, the kernel kills the command (PR_SET_PDEATHSIG) when the parent process ends for any reason. A killed ticker
therefore leaves no unsupervised run. `preexec_fn` would do the same without this module, but is not safe in a process
with threads. On other systems the command runs without this protection.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Request the signal and replace this process by the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != int(parent):  # the parent ended before the request
            sys.exit(f"parent process {parent} has ended")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
