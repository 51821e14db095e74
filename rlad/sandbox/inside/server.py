"""The sandbox's own process: it enters the namespaces and forks one restricted process for each run.

Protocol, on pipes that no program has: requests and replies are JSON with their length before them.

- `{"hello": barriers}` once at the start;
- for each request `{"source", "imports", "examine"}`: `{"started": barriers, "role"}` from each process before it runs
  untrusted code, `{"ended": {...}, "role"}` from its parent afterwards, then `{"done": true}`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
from typing import Any

from rlad.sandbox.inside import kernel, program
from rlad.sandbox.inside.program import Job
from rlad.sandbox.inside.values import Channel, ChannelClosed

STDIN, STDOUT, STDERR = 0, 1, 2


class Server:
    """Serves runs until the caller closes the requests. Only this process and the forked parents report."""

    def __init__(self, spec: dict[str, Any], requests_fd: int, replies_fd: int) -> None:
        self._spec, self._channel, self._replies_fd = spec, Channel(requests_fd, replies_fd), replies_fd
        self._barriers: list[str] = []
        self._runs = 0

    def serve(self) -> Job | None:
        """Serve all requests. Returns in every forked program too, with what it has to run."""
        self._enter()
        while True:
            try:
                request = self._channel.receive()
            except ChannelClosed:
                return None
            job = self._serve_one(request)
            if job is not None:
                return job

    def _enter(self) -> None:
        spec = self._spec
        for module in spec["preload"]:
            importlib.import_module(module)
        if spec["preload"]:
            gc.collect()
            gc.freeze()  # so that collections in a program do not copy the modules' pages
        if "namespaces" in spec["mechanisms"]:
            self._barriers += kernel.enter_shared_namespaces()
            if "mount_namespace" in self._barriers:
                self._barriers += kernel.mount_limited_files(spec["directory"], spec["disk_bytes"])
        kernel.set_dumpable(False)
        if "landlock" in spec["mechanisms"]:
            # One ruleset for all runs, since a ruleset in each process namespace delays the end of the run by 0.1 s.
            kernel.forbid_new_privileges()
            self._barriers += kernel.restrict_files(spec["directory"])
        self._channel.send({"hello": self._barriers})

    def _serve_one(self, request: dict[str, Any]) -> Job | None:
        os.lseek(STDIN, 0, os.SEEK_SET)
        for descriptor in (STDOUT, STDERR):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
        channels: list[tuple[int, int] | None] = [None, None]
        if request["examine"]:
            to_examiner, to_program = os.pipe(), os.pipe()
            channels = [(to_program[0], to_examiner[1]), (to_examiner[0], to_program[1])]
        parent, job = self._fork(
            "program", Job(source=request["source"], imports=request["imports"], channel=channels[0])
        )
        if job is not None:
            return job
        if request["examine"]:
            examiner, job = self._fork("examiner", Job(channel=channels[1], tests_fd=self._spec["tests_fd"]))
            if job is not None:
                return job
            for descriptor in (*(channels[0] or ()), *(channels[1] or ())):
                os.close(descriptor)
            os.waitpid(examiner, 0)
            os.kill(parent, signal.SIGTERM)
        os.waitpid(parent, 0)
        self._clean()
        self._channel.send({"done": True})
        return None

    def _fork(self, role: str, job: Job) -> tuple[int, Job | None]:
        """Fork the parent of a restricted process, which forks that process in turn.

        Returns:
            Id of the parent, and None; in the restricted process 0 and the job.
        """
        self._runs += 1
        directory = f"{self._spec['directory']}/{self._runs}"
        os.mkdir(directory, 0o700)  # noqa: PTH102
        server = os.getpid()
        parent = os.fork()
        if parent != 0:
            return parent, None
        if not kernel.die_with_parent(server):
            os._exit(1)
        return 0, self._run(role, directory, job)

    def _run(self, role: str, directory: str, job: Job) -> Job:
        """Fork the restricted process, wait for it and report how it ended. Returns only in the restricted process."""
        barriers = list(self._barriers)
        if "namespaces" in self._spec["mechanisms"]:
            barriers += kernel.enter_process_namespace()
        outer, was_stopped = os.getpid(), False
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        inner = os.fork()
        if inner == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            return self._become(role, directory, job, barriers, outer)

        def stop(*_: Any) -> None:
            nonlocal was_stopped
            # A process that has ended by itself, for its CPU time for example, was not stopped. It may be waited for
            # already: a program ends when the examiner does, which is also when this signal is sent.
            with contextlib.suppress(ChildProcessError):
                was_stopped = os.waitid(os.P_PID, inner, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
                os.kill(inner, signal.SIGKILL)

        signal.signal(signal.SIGTERM, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _close_all_but({STDIN, STDOUT, STDERR, self._replies_fd})  # the examiner waits for the end of its pipe
        _, status = os.waitpid(inner, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        is_killed = os.WIFSIGNALED(status)
        end = {
            "exit_code": None if is_killed else os.WEXITSTATUS(status),
            "signal": os.WTERMSIG(status) if is_killed else None,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "was_stopped": was_stopped,
        }
        self._channel.send({"ended": end, "role": role})
        os._exit(0)

    def _become(self, role: str, directory: str, job: Job, barriers: list[str], outer: int) -> Job:
        """Restrict this process, and report that it starts. Its report is the last that it can send."""
        kernel.set_dumpable(True)  # so that the caller can count its files; a change of user clears it
        kernel.die_with_parent(None)
        if "process_namespace" not in barriers and os.getppid() != outer:
            os._exit(1)
        if job.tests_fd is not None:
            with open(os.devnull, "r+b") as null:  # noqa: PTH123
                for descriptor in (STDIN, STDOUT, STDERR):
                    os.dup2(null.fileno(), descriptor)
        found = program.restrict(self._spec, directory, barriers)
        self._channel.send({"started": found, "role": role})
        _close_all_but(job.descriptors)
        return job

    def _clean(self) -> None:
        for name in os.listdir(self._spec["directory"]):  # noqa: PTH208
            shutil.rmtree(f"{self._spec['directory']}/{name}", ignore_errors=True)


def _close_all_but(kept: set[int]) -> None:
    last = -1
    for descriptor in [*sorted(kept), 65_536]:
        if descriptor > last + 1:  # an empty range would close everything
            os.closerange(last + 1, descriptor)
        last = descriptor


def main(arguments: list[str]) -> Job | None:
    """Serve the sandbox of a specification. Return the job in each restricted process, and None in the server."""
    spec_fd, requests_fd, replies_fd = (int(argument) for argument in arguments)
    with os.fdopen(spec_fd, encoding="utf-8") as file:
        spec = json.load(file)
    if not kernel.die_with_parent(spec["caller"]):
        return None
    with contextlib.suppress(ValueError):
        soft = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (soft, soft))  # the caller's own limit is not the program's
    # By default, numpy would start one thread per core.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    sys.stdout.flush()
    return Server(spec, requests_fd, replies_fd).serve()
