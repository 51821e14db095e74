"""Building of a recipe's models in the cache, once, with one training process per model."""

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

# A process without a progress report for this long hangs. A step takes a fraction of a second, and the imports at
# most about a minute.
_SILENCE_TIMEOUT_S = 300.0
_LOCK_TIMEOUT_S = 3600.0
_REPORT_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failed:
    """Message of a process whose training raised an exception."""

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
    """Return the directories of a recipe's models, training those that are not in the cache.

    Models are trained in parallel, each in a process with one thread. With concurrent callers, one trains and the
    others wait. A model's directory appears atomically.

    Args:
        recipe: Recipe of the models.
        cache_dir: Cache directory; default: `$RLAD_CACHE`, else the user's cache directory.
        progress: Called with progress reports.
        roles: Roles to build.
        force: Train again even if the models are in the cache.

    Raises:
        EngineError: Training failed, or its process died.
        PlanError: The cache is not writable.
        DeadlineError: Another process has been training the same recipe for too long.
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
    """Hold the lock of a recipe. The operating system releases it if this process dies."""
    path = folder / f".{name}.lock"
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=_LOCK_TIMEOUT_S)
    except Timeout as error:
        raise DeadlineError(
            f"timed out after {_LOCK_TIMEOUT_S:.0f} s waiting for the lock {path}, which another training process "
            "holds. Stop that process and try again"
        ) from error
    except OSError as error:
        raise PlanError(
            f"cannot write starter models to {folder}: {error}. Set RLAD_CACHE to a writable directory"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(recipe: StarterRecipe, directories: dict[Role, Path], progress: OnProgress) -> None:
    """Train into temporary directories, and rename each one when it is complete. Requires the lock of the recipe."""
    folder = next(iter(directories.values())).parent
    unfinished = f".unfinished-{recipe.name}-"
    # Left behind by killed processes: the lock excludes running ones.
    for left_over in folder.glob(f"{unfinished}*"):
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
                worker.process.join()  # unlimited wait: the kernel ends a killed process
                worker.receiver.close()


def _start(recipe: StarterRecipe, role: Role, directory: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_train_in_child, args=(recipe, role, directory, sender), name=f"starter-{role}", daemon=True
    )
    process.start()
    sender.close()  # the child has the only copy now, so its death closes the stream
    return _Worker(role=role, process=process, receiver=receiver)


def _watch(
    recipe: StarterRecipe, workers: Sequence[_Worker], progress: OnProgress, finish: Callable[[Role], None]
) -> None:
    """Forward progress reports until all processes have succeeded, and call `finish` for each one.

    Raises:
        EngineError: A process failed, died, or stopped reporting.
    """
    running = {worker.receiver: worker for worker in workers}
    while running:
        ready = wait(list(running), timeout=_SILENCE_TIMEOUT_S)
        if not ready:
            silent = ", ".join(f"{recipe.name}/{worker.role}" for worker in running.values())
            raise EngineError(
                f"training of starter {silent} was stopped after {_SILENCE_TIMEOUT_S:.0f} s without progress. Try again"
            )
        for worker in [worker for receiver, worker in running.items() if receiver in ready]:
            name = f"{recipe.name}/{worker.role}"
            try:
                message = worker.receiver.recv()
            except EOFError:
                worker.process.join(_SILENCE_TIMEOUT_S)
                if worker.process.exitcode != 0:
                    raise EngineError(
                        f"the process training starter {name} died with exit code {worker.process.exitcode}. Negative "
                        "codes are signals; -9 often means that the machine is out of memory. Try again"
                    ) from None
                del running[worker.receiver]
                finish(worker.role)
                continue
            if isinstance(message, _Failed):
                raise EngineError(f"training starter {name} failed:\n{message.problem}")
            progress(message)


def _train_in_child(recipe: StarterRecipe, role: Role, directory: Path, sender: Connection) -> None:
    """Entry point of a training process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent receives it, too, and kills this process
    last_sent = 0.0

    def report(update: StarterProgress) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > _REPORT_INTERVAL_S or update.done in (0, update.total):
            last_sent = time.monotonic()
            sender.send(update)

    try:
        # Imported here, because the parent needs neither torch nor transformers.
        from pipelines.starters.making import make_starter

        make_starter(recipe, role, directory, report)
    except BrokenPipeError:
        return  # the parent is gone
    except Exception:  # noqa: BLE001 - the parent raises it with the model's name
        sender.send(_Failed(problem=traceback.format_exc()))
