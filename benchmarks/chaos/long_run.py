"""Long run: 500 steps of stand-ins, after which memory, descriptors and references must be back at the baseline.

python -m benchmarks.chaos.long_run --json OUT

The driver, with the learner's thread in it, and the broker are measured at every step. The baseline is taken after the
first steps, which import modules and fill caches.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import psutil
import ray
import typer
from ray.actor import ActorHandle
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.learner_thread import LearnerThread
from benchmarks.chaos.stand_in_run import ArraySampler, ArrayWorker, Counts, stand_in_config, start_broker, train
from benchmarks.measure import JsonPath
from pipelines.training.step_pipeline import TrainedStep

_PROMPTS_PER_STEP, _RESPONSE_TOKENS = 4, 20_000  # above the 100 KiB up to which Ray keeps an object with its owner
_TIMEOUT_S = 900.0
_ANSWER_TIMEOUT_S = 60.0
# Step at which the baseline begins, as a share of all steps, and the number of windows after it.
_WARM_UP, _WINDOWS = 0.2, 5
_MIB = 1 << 20
# Growth from the first to the last window. An allocator keeps some pages that it has once had; a leak of one record of
# 4 KiB for each of the 1,600 groups would be 6 MiB.
_MAX_GROWTH_MIB, _MAX_DESCRIPTORS = 6.0, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Memory, descriptors and threads of a process.

    Attributes:
        private_mib: Memory that no other process shares, MiB. The object store is shared.
        descriptors: Number of open file descriptors.
        threads: Number of threads.
    """

    private_mib: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, process: psutil.Process) -> Usage:
        """Measure a process of this machine."""
        private_mib = process.memory_full_info().uss / _MIB
        return cls(private_mib=private_mib, descriptors=process.num_fds(), threads=process.num_threads())


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Growth of a process between the first and the last window after the warm-up, by their medians.

    Attributes:
        role: The process.
        baseline: Usage in the first window.
        private_mib: Growth of the private memory, MiB.
        descriptors: Growth of the number of descriptors.
        threads: Growth of the number of threads.
    """

    role: str
    baseline: Usage
    private_mib: float
    descriptors: float
    threads: float

    @property
    def is_right(self) -> bool:
        return self.private_mib <= _MAX_GROWTH_MIB and self.descriptors <= _MAX_DESCRIPTORS

    @classmethod
    def of(cls, role: str, usages: Sequence[Usage]) -> Growth:
        """Compute the growth from the usage at each step."""
        after = usages[int(len(usages) * _WARM_UP) :]
        size = len(after) // _WINDOWS
        first, last = (_median(window) for window in (after[:size], after[-size:]))
        return cls(
            role=role,
            baseline=first,
            private_mib=round(last.private_mib - first.private_mib, 2),
            descriptors=last.descriptors - first.descriptors,
            threads=last.threads - first.threads,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of a long run.

    Attributes:
        growths: Growth of each process.
        counts: Counts of the ledger.
        references: Number of references to Ray objects that the driver holds after the run, less those before it.
        descriptors: Number of the driver's descriptors after the run, less those before it.
        elapsed_s: Duration, seconds.
    """

    growths: list[Growth]
    counts: Counts
    references: int
    descriptors: int
    elapsed_s: float

    @property
    def is_right(self) -> bool:
        return (
            all(growth.is_right for growth in self.growths)
            and not self.counts.lost
            and not self.counts.twice
            and self.references <= 0
            and self.descriptors <= _MAX_DESCRIPTORS
        )


async def measure(steps: int, folder: Path) -> Result:
    """Train a number of steps on the connected cluster.

    Args:
        steps: Number of steps.
        folder: Folder for the ledger.
    """
    began = time.monotonic()
    config = stand_in_config(
        steps=steps,
        prompts_per_step=_PROMPTS_PER_STEP,
        response_tokens=_RESPONSE_TOKENS,
        settings=("training.max_staleness=1",),
    )
    await _warm_up_ray()
    driver, usages = psutil.Process(), {"driver": list[Usage](), "broker": list[Usage]()}
    before, references = Usage.of(driver), held_references()
    broker = start_broker(folder / "ledger.sqlite", config)
    processes = {"driver": driver, "broker": await _process_of(broker)}

    def on_step(_: TrainedStep) -> None:
        for role, process in processes.items():
            usages[role].append(Usage.of(process))

    workers = {name: ray.remote(ArrayWorker).options(num_cpus=0).remote(_RESPONSE_TOKENS) for name in ("a", "b")}
    learner = LearnerThread(broker, steps=steps)
    await train(config, broker, ArraySampler(workers), learner, on_step=on_step, timeout_s=_TIMEOUT_S)
    for actor in (broker, *workers.values()):
        ray.kill(actor)
    del broker, workers, learner, actor
    await _until_released(references, before.descriptors)
    return Result(
        growths=[Growth.of(role, found) for role, found in usages.items()],
        counts=Counts.of(folder / "ledger.sqlite"),
        references=held_references() - references,
        descriptors=Usage.of(driver).descriptors - before.descriptors,
        elapsed_s=round(time.monotonic() - began, 1),
    )


def held_references() -> int:
    """Return the number of references to objects and actors that this process holds."""
    gc.collect()
    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


async def _warm_up_ray() -> None:
    """Use an actor once, so that Ray opens what it keeps open."""
    worker = ray.remote(ArrayWorker).options(num_cpus=0).remote(1)
    async with asyncio.timeout(_ANSWER_TIMEOUT_S):
        await worker.__ray_ready__.remote()
    ray.kill(worker)


async def _process_of(broker: ActorHandle) -> psutil.Process:
    async with asyncio.timeout(_ANSWER_TIMEOUT_S):
        return psutil.Process(await broker.pid.remote())


async def _until_released(references: int, descriptors: int) -> None:
    """Wait until Ray has released the objects of the run, and closed its connections to the killed actors.

    Gives up after a time; the result tells what is left.
    """
    process, deadline = psutil.Process(), time.monotonic() + _ANSWER_TIMEOUT_S
    while time.monotonic() < deadline and (
        held_references() > references or process.num_fds() > descriptors + _MAX_DESCRIPTORS
    ):
        await asyncio.sleep(0.1)


def _median(window: Sequence[Usage]) -> Usage:
    return Usage(
        private_mib=round(statistics.median(usage.private_mib for usage in window), 2),
        descriptors=int(statistics.median(usage.descriptors for usage in window)),
        threads=int(statistics.median(usage.threads for usage in window)),
    )


def main(
    steps: Annotated[int, typer.Option(help="Number of steps.", min=50)] = 500,
    json_path: JsonPath = None,
) -> None:
    """Train many steps with stand-ins, and exit with 1 if something grows or is left over."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = asyncio.run(measure(steps, Path(folder)))
    finally:
        ray.shutdown()
    table = Table("process", "memory", "growth", "descriptors", "growth", "threads", "growth")
    for each in result.growths:
        base = each.baseline
        table.add_row(
            each.role,
            f"{base.private_mib:.1f} MiB",
            f"{each.private_mib:+.2f} MiB",
            str(base.descriptors),
            f"{each.descriptors:+g}",
            str(base.threads),
            f"{each.threads:+g}",
        )
    console = Console()
    console.print(table)
    console.print(f"{result.counts}, left over: {result.references} references, {result.descriptors} descriptors")
    console.print(f"{'right' if result.is_right else 'WRONG'} after {result.elapsed_s:.0f} s")
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    raise typer.Exit(0 if result.is_right else 1)


if __name__ == "__main__":
    typer.run(main)
