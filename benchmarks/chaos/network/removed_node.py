"""Removed node: the node with the rollout worker and the teacher of a real run is killed, and must cost no group.

python -m benchmarks.chaos.network.removed_node --json OUT

A smoke run trains on a standing cluster of two nodes. The driver and the learner are on the head; the rollout worker
and the teacher fit only on the second node, so responses and scores lie in its object store, and Ray may place the
broker there too. All processes of the node are killed while it holds groups that are not trained on yet, and another
node joins.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import ray
import typer
from ray.cluster_utils import Cluster
from rich.console import Console

from benchmarks.chaos.smoke_run import Ending, SmokeRun, smoke_run, wait_for
from benchmarks.measure import JsonPath
from rlad.ledger import GroupState, Ledger, LedgerCounts

# A worker of the rollout pool and a replica of the teacher fit on a worker node, and neither on the head.
_HEAD_CPUS, _WORKER_CPUS, _NODE_CPUS = 8, 10, 24
# Ray keeps small objects in the process that owns them, here the driver. Groups of the smoke run have a few KiB.
_LARGEST_INLINE_BYTES = 512
_SETTINGS = (
    f"rollout.cpus_per_worker={_WORKER_CPUS}",
    f"teacher.cpus_per_replica={_WORKER_CPUS}",
    "training.max_staleness=1",
    "evaluation.every_steps=0",
    "checkpoints.every_steps=1",
    "failures.heartbeat_s=1",
)
# Groups that the node must hold when it is killed, beyond those of trained steps.
_HELD = 4
_NODE_STARTS = 3
# Steps after the kill: the first one may have been complete.
_STEPS_AFTER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of a run that loses a node.

    Attributes:
        ending: End of the run.
        held: Groups by state that were sampled and not yet trained on when the node was killed.
        reissued: Number of attempts beyond the first.
        noticed_s: Time until Ray counted the node as dead, seconds.
        recovered_s: Time until two further steps were trained, seconds.
        resumed: Number of times that the run ended and was continued. Must be 0.
    """

    ending: Ending
    held: dict[str, int]
    reissued: int
    noticed_s: float
    recovered_s: float
    resumed: int

    @property
    def is_right(self) -> bool:
        return self.ending.is_right and not self.resumed and self.reissued > 0


@contextmanager
def _cluster() -> Iterator[Cluster]:
    """Start a head and one further node, and connect this process to them as an observer."""
    system = {"max_direct_call_object_size": _LARGEST_INLINE_BYTES}
    head = {"num_cpus": _HEAD_CPUS, "include_dashboard": False, "_system_config": system}
    cluster = _started(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def _add_node(cluster: Cluster) -> Any:
    """Add a node for the rollout worker and the teacher."""
    return _started(lambda: cluster.add_node(num_cpus=_NODE_CPUS))


def _started(start: Callable[[], Any]) -> Any:
    """Start a node. On a loaded machine the 30 s that Ray allows for it may not do, so it is tried again."""
    for attempt in range(_NODE_STARTS):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == _NODE_STARTS - 1:
                raise
    raise AssertionError


def _kill(node: Any) -> None:
    """Kill all processes of a node at once: its raylet with the object store, its agents and its workers."""
    family: list[psutil.Process] = []
    for started in (each for infos in node.all_processes.values() for each in infos):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(started.process.pid)
            family += [process, *process.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _counts(run: SmokeRun) -> LedgerCounts:
    with closing(Ledger(run.directory.ledger, read_only=True)) as ledger:
        return ledger.counts()


def _held(run: SmokeRun) -> dict[GroupState, int]:
    """Return the number of groups whose data are needed, by state."""
    states = _counts(run).states
    return {state: states[state] for state in (GroupState.SAMPLED, GroupState.SCORED)}


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def measure(folder: Path, *, steps: int, console: Console) -> Result:
    """Run the smoke configuration, and kill the second node after the first step.

    Args:
        folder: Folder of the run.
        steps: Number of steps of the run.
        console: Where the progress is printed.
    """
    with _cluster() as cluster:
        node = _add_node(cluster)
        settings = [*_SETTINGS, f"training.steps={steps}", f"cluster.address={cluster.address}"]
        with smoke_run(folder / "run", settings) as run:

            def holds_groups() -> bool:
                if not run.steps():
                    return run.has_ended()
                held = _held(run)
                return run.has_ended() or (held[GroupState.SCORED] >= _HELD and sum(held.values()) > _HELD)

            try:
                wait_for(holds_groups, "groups on the second node")
                if run.has_ended():
                    raise TimeoutError("the run ended before the node was killed")
                held, before, killed_at = _held(run), run.steps(), time.monotonic()
                _kill(node)
                console.print(f"killed the node at step {before}: {held}", highlight=False)
                _add_node(cluster)
                wait_for(lambda: not _is_alive(node.node_id), "the death of the node in Ray")
                noticed_s = time.monotonic() - killed_at
                wait_for(lambda: run.has_ended() or run.steps() >= before + _STEPS_AFTER, "two further steps")
                recovered_s = time.monotonic() - killed_at
                ending = run.finish("smoke run")
            except TimeoutError:
                console.print(run.tail(), markup=False)
                raise
            if not ending.is_right:
                console.print(run.tail(60), markup=False)
            return Result(
                ending=ending,
                held={str(state): number for state, number in held.items()},
                reissued=_counts(run).retried,
                noticed_s=round(noticed_s, 1),
                recovered_s=round(recovered_s, 1),
                resumed=run.resumed,
            )


def main(
    steps: Annotated[int, typer.Option(help="Number of steps of the run.", min=4)] = 6,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for the run. Default: a temporary one.", show_default=False)
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Kill the node that holds a run's groups, and exit with 1 unless it finishes with nothing lost or twice."""
    console = Console()
    # The mode of this process and its cluster. The run would use a token that it finds in the home directory.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(folder, steps=steps, console=console)
    console.print(asdict(result))
    console.print("right" if result.is_right else "WRONG")
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    raise typer.Exit(0 if result.is_right else 1)


if __name__ == "__main__":
    typer.run(main)
