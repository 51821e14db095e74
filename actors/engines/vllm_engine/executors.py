"""vLLM's executors, with one thing added: an engine process that lost the actor which started it ends itself.

vLLM's EngineCore outlives a parent that is killed with SIGKILL, for ever, and keeps its memory and GPUs. An executor lives in EngineCore, so this is the
place to watch from. Named by path in `vllm_settings.engine_args`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

# For an orderly end. A main thread in the middle of a long kernel sees the signal late.
_GRACE_S = 10.0


class UniProcessExecutor(UniProcExecutor):
    """The model runs in EngineCore itself."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


class MultiProcessExecutor(MultiprocExecutor):
    """The model runs in one process a GPU, which vLLM ends when EngineCore goes."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


def end_with_parent() -> None:
    """End this process as soon as the process that spawned it is gone, however that one died. Does nothing in a process nobody spawned."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()  # returns when the kernel closes the parent's end of a pipe
        os.kill(os.getpid(), signal.SIGTERM)  # vLLM leaves in order: it removes its semaphores and sockets
        time.sleep(_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
