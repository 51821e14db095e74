"""Making a recipe's models: a process each, into the cache, once."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.starters.progress import OnProgress, StarterProgress
from rlad.errors import DeadlineError, EngineError, PlanError
from rlad.starters.cache import is_finished, starter_directory, starters_folder
from rlad.starters.recipes import ROLES, Role, StarterRecipe

# A process that says nothing for so long hangs: a step takes a fraction of a second, importing the libraries at most a minute or so.
_SILENCE_TIMEOUT_S = 300.0
_LOCK_TIMEOUT_S = 3600.0
_REPORT_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    """Sent by a process whose training raised."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    role: Role
    process: BaseProcess
    receiver: Connection


def ensure_starters(
    recipe: StarterRecipe,
    cache_dir: Path | None = None,
    progress: OnProgress | None = None,
    *,
    roles: Sequence[Role] = ROLES,
    force: bool = False,
) -> dict[Role, Path]:
    """Directories of the recipe's models; those that are not in the cache are trained first, in parallel, a process of one thread each.

    Of several callers at once, one trains and the others wait for it. A model appears under its name only when it is whole.

    Args:
        roles: which of the two are wanted.
        force: train them again although they are in the cache.

    Raises:
        EngineError: training failed, or its process died; the message says of which model and why.
        PlanError: the cache cannot be written.
        DeadlineError: another process has been training the same recipe for too long.
    """
    directories = {role: starter_directory(recipe, role, cache_dir) for role in roles}
    if not force and all(map(is_finished, directories.values())):
        return directories
    with _locked(starters_folder(cache_dir), recipe.name):
        missing = {role: directory for role, directory in directories.items() if force or not is_finished(directory)}
        if missing:
            _build(recipe, missing, progress or (lambda _: None))
    return directories


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Hold a recipe's lock, which the system frees if this process dies."""
    path = folder / f".{name}.lock"
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout as error:
        raise DeadlineError(
            f"another process has held {path} for {_LOCK_TIMEOUT_S:.0f} s: see what trains there, and end it"
        ) from error
    except OSError as error:
        raise PlanError(
            f"starter models cannot be kept in {folder} ({error}): set RLAD_CACHE to a folder that can be written"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(recipe: StarterRecipe, directories: dict[Role, Path], progress: OnProgress) -> None:
    """Train into unfinished directories beside the final ones; rename each as soon as it is whole. The recipe's lock is held."""
    folder = next(iter(directories.values())).parent
    unfinished = f".unfinished-{recipe.name}-"
    for left_over in folder.glob(
        f"{unfinished}*"
    ):  # of a process that was killed: nobody else works on this recipe while we hold its lock
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=unfinished, dir=folder) as scratch:

        def finish(role: Role) -> None:
            if directories[role].exists():
                directories[role].rename(Path(scratch) / f"replaced-{role}")
            (Path(scratch) / role).rename(directories[role])

        workers: list[_Worker] = []
        try:
            workers.extend(_start(recipe, role, Path(scratch) / role) for role in directories)
            _watch(recipe, workers, progress, finish)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()
                worker.receiver.close()


def _start(recipe: StarterRecipe, role: Role, directory: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_train_in_child, args=(recipe, role, directory, sender), name=f"starter-{role}", daemon=True
    )
    process.start()
    sender.close()  # the child's copy is now the only one, so its death ends the stream
    return _Worker(role=role, process=process, receiver=receiver)


def _watch(
    recipe: StarterRecipe, workers: Sequence[_Worker], progress: OnProgress, finish: Callable[[Role], None]
) -> None:
    """Pass on progress until every process has ended well; `finish` each that has.

    Raises:
        EngineError: one failed, died, or fell silent.
    """
    running = {worker.receiver: worker for worker in workers}
    while running:
        ready = wait(list(running), timeout=_SILENCE_TIMEOUT_S)
        if not ready:
            silent = ", ".join(f"{recipe.name}/{worker.role}" for worker in running.values())
            raise EngineError(
                f"training of starter {silent} has said nothing for {_SILENCE_TIMEOUT_S:.0f} s and was ended: try again"
            )
        for worker in [worker for receiver, worker in running.items() if receiver in ready]:
            name = f"{recipe.name}/{worker.role}"
            try:
                message = worker.receiver.recv()
            except EOFError:
                worker.process.join()
                if worker.process.exitcode != 0:
                    raise EngineError(
                        f"the process training starter {name} died with exit code {worker.process.exitcode} (a negative one is the signal "
                        "that killed it; -9 is often the machine being out of memory): try again"
                    ) from None
                del running[worker.receiver]
                finish(worker.role)
                continue
            if isinstance(message, _Failed):
                raise EngineError(f"training starter {name} failed:\n{message.problem}")
            progress(message)


def _train_in_child(recipe: StarterRecipe, role: Role, directory: Path, sender: Connection) -> None:
    """Entry point of a training process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    last_sent = 0.0

    def report(update: StarterProgress) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > _REPORT_INTERVAL_S or update.done in (0, update.total):
            last_sent = time.monotonic()
            sender.send(update)

    try:
        from pipelines.starters.making import (
            make_starter,  # here, because the parent needs neither torch nor transformers
        )

        make_starter(recipe, role, directory, report)
    except BrokenPipeError:
        return  # the parent is gone, and nobody wants the model
    except Exception:  # noqa: BLE001 - whatever it is, the parent raises it with the model's name
        sender.send(_Failed(problem=traceback.format_exc()))
