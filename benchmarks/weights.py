"""Weights benchmark: memory and time of a weight update from the learner to the engines of a node.

python -m benchmarks.weights --json OUT
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import numpy as np
import ray
import torch
import typer
from rich.console import Console

from actors.messages import WeightsPublication
from actors.weights.node_file import HeldFile, NodeWeights
from actors.weights.publish import publish
from actors.weights.published_file import hold_published
from benchmarks.measure import JsonPath, Paired, Pairs, Ratio, Result, measure_pairs, show
from pipelines.run.progress import RunProgress
from rlad.contracts import WeightsManifest
from rlad.weight_file import MappedFile

T = TypeVar("T")

# 64 matrices of 4 MiB and 64 vectors, 256 MiB in all.
NUM_LAYERS, ROWS, COLUMNS = 64, 1024, 1024
_STORE_BYTES = 1 << 30
_TIMEOUT_S = 120.0
# The first versions allocate and map the pages of the store and of the file.
_WARM_UPS = 4
# Share of changed tensors, as with LoRA, where tensors without an adapter stay the same.
_TRAINED = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Cost of one stage of an update.

    Attributes:
        elapsed_s: wall-clock seconds.
        cpu_s: CPU seconds of its process.
        private_bytes: peak growth of the process's private memory; 0 where it was not measured.
    """

    elapsed_s: float
    cpu_s: float
    private_bytes: int


def gathered_weights() -> dict[str, torch.Tensor]:
    """Return tensors on the CPU by name, like the learner's `gather_weights`."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{layer}.weight": torch.randn(ROWS, COLUMNS, generator=generator) for layer in range(NUM_LAYERS)
    }
    return weights | {f"model.layers.{layer}.norm": torch.ones(COLUMNS) for layer in range(NUM_LAYERS)}


def timed(action: Callable[[], T]) -> tuple[T, Stage]:
    """Run an action and measure its time."""
    started, started_cpu = time.perf_counter(), time.process_time()
    result = action()
    return result, Stage(
        elapsed_s=time.perf_counter() - started, cpu_s=time.process_time() - started_cpu, private_bytes=0
    )


def watched(action: Callable[[], T]) -> tuple[T, Stage]:
    """Run an action and measure its time and, every millisecond, this process's anonymous memory."""
    before, peak, done = _anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result, stage = timed(action)
    finally:
        done.set()
        watcher.join()
    return result, replace(stage, private_bytes=max(0, max(peak[0], _anonymous_bytes()) - before))


def _anonymous_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


class Writer:
    """Actor that writes a weight publication to the node's file, like the first rollout worker of a node."""

    def __init__(self, run_id: str) -> None:
        self._weights = NodeWeights(run_id)

    def write(self, publication: WeightsPublication, watch: bool) -> tuple[str, Stage]:
        def hold() -> HeldFile:
            return hold_published(self._weights, publication)

        held, stage = watched(hold) if watch else timed(hold)
        held.release()
        self._weights.remove_older(publication.manifest)
        return str(held.path), stage

    def close(self) -> None:
        self._weights.close()


class Engine:
    """Actor that verifies the file and maps its tensors, like an engine before its model loads them."""

    def __init__(self) -> None:
        self._file = MappedFile()

    def map(self, path: str, manifest: WeightsManifest, watch: bool) -> Stage:
        return (watched if watch else timed)(lambda: len(self._file.tensors(Path(path), manifest)))[1]


class Update:
    """Sequence of weight updates through one node."""

    def __init__(self) -> None:
        self.weights = gathered_weights()
        self.num_bytes = sum(tensor.nbytes for tensor in self.weights.values())
        self._writer = ray.remote(num_cpus=0)(Writer).remote(f"benchmark-{os.getpid()}")
        self._engine = ray.remote(num_cpus=0)(Engine).remote()
        self._version = 0
        self._published: WeightsPublication | None = None
        self.stages: list[dict[str, Stage]] = []
        self.memcpys: list[Stage] = []
        self.shared_bytes = self.put_bytes = 0

    def run(self, *, trained: float = 1.0, watch: bool = False) -> float:
        """Change a share of the weights, publish, write and map them, and return the seconds without actor calls.

        Args:
            trained: share of the tensors to change.
            watch: whether to measure memory too.
        """
        for name in sorted(self.weights)[: round(trained * len(self.weights))]:
            self.weights[name] += 1
        earlier = self._published
        self._version += 1
        publication, published = (watched if watch else timed)(
            lambda: publish(self.weights, self._version, earlier=earlier)
        )
        path, written = ray.get(self._writer.write.remote(publication, watch), timeout=_TIMEOUT_S)
        mapped = ray.get(self._engine.map.remote(path, publication.manifest, watch), timeout=_TIMEOUT_S)
        refs = {bucket.ref for bucket in publication.buckets}
        self.shared_bytes = stored_bytes(refs) + Path(path).stat().st_size
        self.put_bytes = stored_bytes(refs.difference(bucket.ref for bucket in earlier.buckets) if earlier else refs)
        self._published = publication
        self.stages.append({"publish": published, "write": written, "map": mapped})
        return sum(stage.elapsed_s for stage in self.stages[-1].values())

    def memcpy(self, copy: Callable[[], object]) -> float:
        """Return the seconds of a plain copy of the same number of bytes."""
        self.memcpys.append(timed(copy)[1])
        return self.memcpys[-1].elapsed_s

    @property
    def cpu_over_memcpy(self) -> float:
        """Median CPU seconds of an update in all processes, over those of a copy."""
        updates = [sum(stage.cpu_s for stage in stages.values()) for stages in self.stages]
        return float(np.median(updates) / np.median([stage.cpu_s for stage in self.memcpys]))

    def copies(self) -> float:
        """Return the peak memory of an update on a node beyond the gathered tensors, in multiples of the model size.

        It counts the objects in the store, the file, and the private memory of the processes.
        """
        self.run(watch=True)
        private = sum(stage.private_bytes for stage in self.stages.pop().values())
        return (self.shared_bytes + private) / self.num_bytes

    def close(self) -> None:
        ray.get(self._writer.close.remote(), timeout=_TIMEOUT_S)


def stored_bytes(refs: Collection[ray.ObjectRef]) -> int:
    """Return the bytes of objects in the object store."""
    return (
        sum(found["object_size"] for found in ray.experimental.get_object_locations(list(refs)).values()) if refs else 0
    )


def stage_medians(stages: list[dict[str, Stage]]) -> dict[str, Any]:
    """Return the median seconds of each stage."""
    return {f"{name}_s": float(np.median([update[name].elapsed_s for update in stages])) for name in stages[0]}


def main(json: JsonPath = None, pairs: Pairs = 7) -> None:
    """Measure weight updates: memory per node beyond the gathered tensors, and time against memcpy. Under a minute."""
    console = Console()
    measured: dict[str, Paired] = {}
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_STORE_BYTES,
    )
    try:
        update = Update()
        source, used = np.ones(update.num_bytes, np.uint8), np.zeros(update.num_bytes, np.uint8)
        with RunProgress(console, total_steps=1) as progress:
            with progress.phase("copies"):
                for _ in range(_WARM_UPS):
                    update.run()
                copies = update.copies()
            copies_of: dict[str, Callable[[], object]] = {"new": source.copy, "used": lambda: np.copyto(used, source)}
            for name, memcpy in copies_of.items():
                with progress.phase(f"update against memcpy to {name} memory", total=pairs) as phase:
                    measured[name] = measure_pairs(
                        update.run, partial(update.memcpy, memcpy), pairs=pairs, on_pair=phase.advance
                    )
                if name == "new":
                    cpu_ratio, stages = update.cpu_over_memcpy, stage_medians(update.stages)
            with progress.phase("update of a quarter against one of all", total=pairs) as phase:
                measured["quarter"] = measure_pairs(
                    partial(update.run, trained=_TRAINED), update.run, pairs=pairs, on_pair=phase.advance
                )
                update.run(trained=_TRAINED)
        update.close()
    finally:
        ray.shutdown()
    ratios = [
        Ratio(
            name="copies_per_node",
            value=copies,
            target=2.01,
            means="peak memory of a node beyond the gathered tensors, in model sizes",
        ),
        Ratio(
            name="update_over_memcpy",
            value=measured["new"].ratio,
            target=3,
            means="publish, write, verify and map, over memcpy to new memory",
        ),
        Ratio(
            name="update_cpu_over_memcpy",
            value=cpu_ratio,
            means="CPU seconds of all processes over memcpy; less sensitive to other load",
        ),
        Ratio(
            name="update_of_a_quarter_over_all",
            value=measured["quarter"].ratio,
            means="an update that changed a quarter of the tensors over one of all",
        ),
        Ratio(
            name="put_share_of_a_quarter",
            value=update.put_bytes / update.num_bytes,
            means="share of the bytes that an update of a quarter sends",
        ),
        Ratio(
            name="update_over_memcpy_used",
            value=measured["used"].ratio,
            means="publish, write, verify and map, over memcpy to used memory",
        ),
    ]
    figures = {
        "update_s": measured["new"].first_median_s,
        "memcpy_new_s": measured["new"].second_median_s,
        "memcpy_used_s": measured["used"].second_median_s,
        "update_best_s": min(measured["new"].first_s),
        "memcpy_new_best_s": min(measured["new"].second_s),
        **stages,
        "gb_per_s": update.num_bytes / measured["new"].first_median_s / 1e9,
        "pairs": {name: [round(ratio, 3) for ratio in sorted(paired.ratios)] for name, paired in measured.items()},
    }
    show(
        Result(
            benchmark="weights",
            ratios=ratios,
            figures=figures,
            settings={"bytes": update.num_bytes, "tensors": len(update.weights)},
        ),
        json,
        console,
    )


if __name__ == "__main__":
    typer.run(main)
