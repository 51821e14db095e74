"""vLLM executors that end the engine process when the actor that started it is gone.

vLLM's EngineCore outlives a parent that is killed with SIGKILL, and keeps its memory and GPUs. An executor runs in
EngineCore, so it can watch the parent from there. `actors.engines.vllm_engine.settings` names these classes by path.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

# Time between SIGTERM and SIGKILL. A main thread inside a long kernel handles the signal late.
_GRACE_S = 10.0


class UniProcessExecutor(UniProcExecutor):
    """Executor that runs the model in EngineCore itself."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


class MultiProcessExecutor(MultiprocExecutor):
    """Executor that runs the model in one process per GPU. vLLM ends them when EngineCore ends."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


def end_with_parent() -> None:
    """End this process as soon as its parent has died, for any reason. Does nothing in a process without a parent."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        # unlimited wait: returns when the kernel closes the parent's end of a pipe
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # lets vLLM remove its semaphores and sockets
        time.sleep(_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
