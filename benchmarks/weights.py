"""New weights from the learner to the engines of a node: copies beyond the gather, and time beside memcpy of the same bytes.

python -m benchmarks.weights --json OUT
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
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
from benchmarks.measure import JsonPath, Paired, Pairs, Ratio, Result, measure_pairs, show
from pipelines.run.progress import RunProgress
from rlad.contracts import WeightsManifest
from rlad.weight_file import MappedFile

T = TypeVar("T")

# 64 matrices of 4 MiB and 64 vectors, 256 MiB in all.
NUM_LAYERS, ROWS, COLUMNS = 64, 1024, 1024
_STORE_BYTES = 1 << 30
_TIMEOUT_S = 120.0
# The first versions make the pages of the store and of the file, and map them.
_WARM_UPS = 4
# As under LoRA, where embeddings and all that has no adapter stay as they are.
_TRAINED = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of an update: its seconds, the CPU seconds of its process, and the most private memory that it took beyond what was there."""

    elapsed_s: float
    cpu_s: float
    private_bytes: int


def gathered_weights() -> dict[str, torch.Tensor]:
    """What the learner's `gather_weights` gives: tensors on the CPU, by name."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{layer}.weight": torch.randn(ROWS, COLUMNS, generator=generator) for layer in range(NUM_LAYERS)
    }
    return weights | {f"model.layers.{layer}.norm": torch.ones(COLUMNS) for layer in range(NUM_LAYERS)}


def timed(action: Callable[[], T]) -> tuple[T, Stage]:
    started, started_cpu = time.perf_counter(), time.process_time()
    result = action()
    return result, Stage(
        elapsed_s=time.perf_counter() - started, cpu_s=time.process_time() - started_cpu, private_bytes=0
    )


def watched(action: Callable[[], T]) -> tuple[T, Stage]:
    """Do something, and look at this process's anonymous memory every millisecond meanwhile."""
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
    """What a node's first rollout worker does with a publication."""

    def __init__(self, run_id: str) -> None:
        self._weights = NodeWeights(run_id)

    def write(self, publication: WeightsPublication, watch: bool) -> tuple[str, Stage]:
        def fetch(places: Sequence[int]) -> Any:
            return ray.get([publication.buckets[place].ref for place in places], timeout=_TIMEOUT_S)

        def hold() -> HeldFile:
            return self._weights.hold(publication.manifest, [bucket.digest for bucket in publication.buckets], fetch)

        held, stage = watched(hold) if watch else timed(hold)
        held.release()
        self._weights.remove_older(publication.manifest)
        return str(held.path), stage

    def close(self) -> None:
        self._weights.close()


class Engine:
    """What an engine's process does before its model takes the tensors: verify the file, and map every tensor of it."""

    def __init__(self) -> None:
        self._file = MappedFile()

    def map(self, path: str, manifest: WeightsManifest, watch: bool) -> Stage:
        return (watched if watch else timed)(lambda: len(self._file.tensors(Path(path), manifest)))[1]


class Update:
    """The way of one set of weights after another through one node."""

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
        """Change so much of the weights, then publish, write and map them. Returns the seconds of the three together, without those of calling actors."""
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
        """Seconds of a plain copy of as many bytes."""
        self.memcpys.append(timed(copy)[1])
        return self.memcpys[-1].elapsed_s

    @property
    def cpu_over_memcpy(self) -> float:
        """CPU seconds of an update, in all its processes together, over those of a copy; medians."""
        updates = [sum(stage.cpu_s for stage in stages.values()) for stages in self.stages]
        return float(np.median(updates) / np.median([stage.cpu_s for stage in self.memcpys]))

    def copies(self) -> float:
        """Sizes of the weights that an update takes at most on a node beyond the gathered tensors: object, file, and what its processes take themselves."""
        self.run(watch=True)
        private = sum(stage.private_bytes for stage in self.stages.pop().values())
        return (self.shared_bytes + private) / self.num_bytes

    def close(self) -> None:
        ray.get(self._writer.close.remote(), timeout=_TIMEOUT_S)


def stored_bytes(refs: Collection[ray.ObjectRef]) -> int:
    """What these objects take in the object store."""
    return (
        sum(found["object_size"] for found in ray.experimental.get_object_locations(list(refs)).values()) if refs else 0
    )


def stage_medians(stages: list[dict[str, Stage]]) -> dict[str, Any]:
    return {f"{name}_s": float(np.median([each[name].elapsed_s for each in stages])) for name in stages[0]}


def main(json: JsonPath = None, pairs: Pairs = 7) -> None:
    """Measure weights: copies a node beyond the gather, and time beside memcpy. Under a minute."""
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
                with progress.phase(f"update beside memcpy to {name} memory", total=pairs) as phase:
                    measured[name] = measure_pairs(
                        update.run, partial(update.memcpy, memcpy), pairs=pairs, on_pair=phase.advance
                    )
                if name == "new":
                    cpu_ratio, stages = update.cpu_over_memcpy, stage_medians(update.stages)
            with progress.phase("update of a quarter beside one of all", total=pairs) as phase:
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
            means="sizes of the weights held on a node at most, beyond the gathered ones",
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
            means="the same in CPU seconds of all processes, which others on the machine disturb less",
        ),
        Ratio(
            name="update_of_a_quarter_over_all",
            value=measured["quarter"].ratio,
            means="an update that changed a quarter of the tensors over one of all",
        ),
        Ratio(
            name="put_share_of_a_quarter",
            value=update.put_bytes / update.num_bytes,
            means="bytes that such an update sends, of all",
        ),
        Ratio(
            name="update_over_memcpy_used",
            value=measured["used"].ratio,
            means="the same, over memcpy to memory that was used before",
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
        "pairs": {name: [round(ratio, 3) for ratio in sorted(each.ratios)] for name, each in measured.items()},
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
