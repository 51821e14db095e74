"""Small object store: a flow of 2 GiB of groups through a store of 200 MiB must neither block nor lose anything.

python -m benchmarks.chaos.small_store --json OUT

Groups stay in the store until a checkpoint contains their step, so the steps that are open at a time need more than the
store holds. Ray then writes objects to the disk, and makes workers wait for room. The number of open steps bounds what
is stored in total.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import ray
import typer
from rich.console import Console

from benchmarks.chaos.learner_thread import LearnerThread
from benchmarks.chaos.stand_in_run import (
    GROUP_SIZE,
    TOKEN_BYTES,
    ArraySampler,
    ArrayWorker,
    Counts,
    stand_in_config,
    start_broker,
    train,
)
from benchmarks.measure import JsonPath

_MIB = 1 << 20
_GROUP_MIB, _PROMPTS_PER_STEP = 8, 8
# Steps that are sampled ahead, and steps between two checkpoints.
_STALENESS, _COMMIT_EVERY = 3, 2
# Ray writes small objects to the disk in files of 100 MiB, and deletes a file with the last object in it. One file is
# being filled and one emptied.
_FILES_MIB = 200
_TIMEOUT_S, _RELEASE_TIMEOUT_S = 600.0, 60.0
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of the flow.

    Attributes:
        store_mib: Size of the object store, MiB.
        flow_mib: Size of all groups that were trained on, MiB.
        open_mib: Most that the run may hold at a time, MiB.
        peak_disk_mib: Most that Ray held on the disk at a time, MiB.
        left_mib: What it held there at the end, MiB.
        counts: Counts of the ledger.
        elapsed_s: Duration, seconds.
    """

    store_mib: int
    flow_mib: int
    open_mib: int
    peak_disk_mib: float
    left_mib: float
    counts: Counts
    elapsed_s: float

    @property
    def is_right(self) -> bool:
        return (
            not self.counts.lost
            and not self.counts.twice
            and self.counts.committed * _GROUP_MIB == self.flow_mib
            and 0 < self.peak_disk_mib <= self.open_mib + _FILES_MIB
            and self.left_mib == 0
        )


class _DiskUse(threading.Thread):
    """Measures the folder that Ray spills objects to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._ended, self.peak = folder, threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self.peak = max(self.peak, self.now())

    def now(self) -> int:
        """Return the size of all files, bytes."""
        total = 0
        for path in self._folder.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # deleted meanwhile
                continue
        return total

    def end(self) -> None:
        self._ended.set()
        self.join(_RELEASE_TIMEOUT_S)


async def measure(store_mib: int, flow_mib: int, folder: Path, spill: Path) -> Result:
    """Let groups flow through the connected cluster.

    Args:
        store_mib: Size of its object store, MiB.
        flow_mib: Size of all groups, MiB.
        folder: Folder for the ledger.
        spill: Folder to which it spills.
    """
    began = time.monotonic()
    response_tokens = _GROUP_MIB * _MIB // GROUP_SIZE // TOKEN_BYTES
    steps = flow_mib // (_GROUP_MIB * _PROMPTS_PER_STEP)
    config = stand_in_config(
        steps=steps,
        prompts_per_step=_PROMPTS_PER_STEP,
        response_tokens=response_tokens,
        settings=(f"training.max_staleness={_STALENESS}",),
    )
    broker = start_broker(folder / "ledger.sqlite", config)
    workers = {name: ray.remote(ArrayWorker).options(num_cpus=0).remote(response_tokens) for name in ("a", "b")}
    learner = LearnerThread(broker, steps=steps, commit_every_steps=_COMMIT_EVERY)
    disk = _DiskUse(spill)
    disk.start()
    await train(config, broker, ArraySampler(workers), learner, on_step=lambda _: None, timeout_s=_TIMEOUT_S)
    for actor in (broker, *workers.values()):
        ray.kill(actor)
    elapsed_s = time.monotonic() - began
    del learner, broker, workers, actor
    deadline = time.monotonic() + _RELEASE_TIMEOUT_S
    while disk.now() and time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_S)
    disk.end()
    # The steps before the newest one are kept until a checkpoint, and the driver hears of it with its next call.
    open_steps = _STALENESS + 1 + _COMMIT_EVERY + 1
    return Result(
        store_mib=store_mib,
        flow_mib=steps * _PROMPTS_PER_STEP * _GROUP_MIB,
        open_mib=open_steps * _PROMPTS_PER_STEP * _GROUP_MIB,
        peak_disk_mib=round(disk.peak / _MIB, 1),
        left_mib=round(disk.now() / _MIB, 1),
        counts=Counts.of(folder / "ledger.sqlite"),
        elapsed_s=round(elapsed_s, 1),
    )


def main(
    store_mib: Annotated[int, typer.Option(help="Size of the object store, MiB.", min=80)] = 200,
    flow_mib: Annotated[int, typer.Option(help="Size of all groups, MiB.", min=512)] = 2048,
    json_path: JsonPath = None,
) -> None:
    """Let groups flow through a small object store, and exit with 1 if one is lost or too much is stored."""
    with tempfile.TemporaryDirectory() as temporary:
        spill = Path(temporary) / "spill"
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=store_mib * _MIB,
            object_spilling_directory=str(spill),
        )
        try:
            result = asyncio.run(measure(store_mib, flow_mib, Path(temporary), spill))
        finally:
            ray.shutdown()
    console = Console()
    console.print(asdict(result))
    console.print("right" if result.is_right else "WRONG")
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    raise typer.Exit(0 if result.is_right else 1)


if __name__ == "__main__":
    typer.run(main)
