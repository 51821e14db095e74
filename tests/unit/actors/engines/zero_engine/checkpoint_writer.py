"""Program that writes checkpoints in child processes and kills each at another point: `checkpoint_writer.py FOLDER`.

Prints one JSON object per kill point: the call that was interrupted and the checkpoint that is found afterwards.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import torch.distributed as dist

from actors.engines.zero_engine.checkpoint_files import SafeCheckpointEngine, require_intact, write_checkpoint
from actors.learner.checkpoints import newest_checkpoint
from rlad.errors import StorageError
from rlad.integrity.durable import move_into_place

WATCHED = ("fsync", "rename", "replace", "open")


def write(checkpoints: Path, step: int) -> None:
    """Write a checkpoint whose tensors hold the step, as a learner rank does."""
    engine = SafeCheckpointEngine()
    partial = checkpoints / f".partial-step-{step:06d}"

    def write_files() -> None:
        (partial / "zero").mkdir(parents=True)
        for name in ("model_states", "optim_states"):
            engine.save({name: torch.full((20_000,), float(step))}, str(partial / "zero" / f"{name}.pt"))

    write_checkpoint(engine, partial, write_files)
    move_into_place(partial, checkpoints / f"step-{step:06d}")


def die_at(number: int) -> None:
    """Kill this process at the call with this number."""
    left = number

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                sys.stdout.write(json.dumps({"killed_at": number, "call": name}) + "\n")
                sys.stdout.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in WATCHED:
        setattr(os, name, counted(name, getattr(os, name)))


def in_child(action: Callable[[], None]) -> bool:
    """Run an action in a fork with a process group of its own. Return whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            action()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a fork must not return into the caller
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit(f"the child failed with status {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def found(checkpoints: Path) -> int:
    """Return the step of the newest checkpoint, after a check of its files and its tensors."""
    newest = newest_checkpoint(checkpoints)
    assert newest is not None
    require_intact(newest)
    step = int(newest.name.removeprefix("step-"))
    for path in sorted((newest / "zero").iterdir()):
        [tensor] = SafeCheckpointEngine().load(str(path)).values()
        assert tensor.eq(step).all()
    return step


def fill_disk(checkpoints: Path) -> str:
    """Write a checkpoint whose files do not fit, and return the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        write(checkpoints, 2)
    except StorageError as error:
        return str(error)
    return "no error"


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    number, was_killed = 0, True
    while was_killed:
        number += 1
        checkpoints = folder / f"at-{number}"

        def interrupted(number: int = number, checkpoints: Path = checkpoints) -> None:
            write(checkpoints, 1)
            die_at(number)
            write(checkpoints, 2)

        was_killed = in_child(interrupted)

        def report(killed: bool = was_killed, checkpoints: Path = checkpoints) -> None:
            print(json.dumps({"was_killed": killed, "found": found(checkpoints)}))

        in_child(report)
        shutil.rmtree(checkpoints)

    def fill() -> None:
        write(folder / "full", 1)
        error = fill_disk(folder / "full")
        print(json.dumps({"full": error, "found": found(folder / "full")}))

    in_child(fill)


if __name__ == "__main__":
    main()
