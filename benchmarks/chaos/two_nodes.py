"""Two nodes: a Ray cluster over two network namespaces, whose link is cut, loses packets and delays them.

python -m benchmarks.chaos.two_nodes --json OUT

Driver, broker and learner are on the first node, rollout workers and verifiers on the second, so every group crosses
the link. The pools, the monitor, the step pipeline and the broker are the real ones with the default budgets; workers
fill arrays instead of sampling. Each fault has a run of its own, which must finish with nothing lost and nothing twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import ray
import typer
from rich.console import Console
from rich.table import Table

from actors.controller import NAMESPACE
from actors.health.monitor import HeartbeatMonitor
from benchmarks.chaos import SKIPPED
from benchmarks.chaos.learner_thread import LearnerThread
from benchmarks.chaos.network.far_actors import RESPONSE_TOKENS
from benchmarks.chaos.network.far_pools import open_far_pools
from benchmarks.chaos.network.namespaces import Impairment, Namespace, Network, inside, network, reason_to_skip
from benchmarks.chaos.stand_in_run import GROUP_SIZE, TOKEN_BYTES, Counts, stand_in_config, start_broker, train
from benchmarks.measure import JsonPath
from pipelines.training.step_pipeline import TrainedStep
from rlad.config import RunConfig

_MIB = 1 << 20
_PORT = 6379
_STEPS, _PROMPTS_PER_STEP, _WORKERS = 12, 4, 2
# Step after which a fault begins.
_FAULT_AFTER = 3
# Nothing outside of the namespaces reaches the cluster, so it needs no token; a head node would take one that it finds.
# A loaded machine starts slowly: no processes that wait for work, and longer deadlines of starts. The deadlines that
# count during a fault keep their defaults.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "120",
    "RAY_py_gcs_connect_timeout_s": "120",
}
_START_TIMEOUT_S, _RUN_TIMEOUT_S, _STOP_TIMEOUT_S = 120.0, 200.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Fault of the link.

    Attributes:
        name: Name in the result.
        impairment: State of the link.
        seconds: Duration; None lasts until the run has ended.
    """

    name: str
    impairment: Impairment
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcome of a run under a fault.

    Attributes:
        fault: Name of the fault.
        partition_s: Duration of the partition, seconds; None for other faults.
        counts: Counts of the ledger.
        elapsed_s: Seconds from the beginning of the fault to the end of the run.
        recovered_s: Seconds from the end of a partition to the end of the second step after it; None for other faults.
        crossed_mib: What arrived from the second node during the run, MiB.
        crossed_meanwhile: Bytes that arrived from there during a partition; None for other faults.
        replaced: Number of rollout workers that were replaced.
        issued_again: Number of attempts at groups after the first ones.
    """

    fault: str
    partition_s: float | None
    counts: Counts
    elapsed_s: float
    recovered_s: float | None
    crossed_mib: float
    crossed_meanwhile: int | None
    replaced: int
    issued_again: int

    @property
    def is_right(self) -> bool:
        groups = _STEPS * _PROMPTS_PER_STEP
        data_mib = groups * GROUP_SIZE * RESPONSE_TOKENS * TOKEN_BYTES / _MIB
        was_cut = self.crossed_meanwhile == 0 and self.recovered_s is not None
        return (
            self.counts == Counts(steps=_STEPS, committed=groups, lost=0, twice=0)
            and self.crossed_mib >= data_mib
            and (self.partition_s is None or was_cut)
        )


class _Injection:
    """One fault of the link during one run."""

    def __init__(self, fault: Fault, net: Network) -> None:
        self._fault, self._net = fault, net
        self._before = net.near.received_bytes()
        self.began: float | None = None
        self._ended: float | None = None
        self.crossed_meanwhile: int | None = None
        self._steps_after: list[float] = []

    def on_step(self, trained: TrainedStep) -> None:
        """Begin the fault after its step, and record the steps after its end."""
        now = time.monotonic()
        if trained.number == _FAULT_AFTER:
            self._net.link.impair(self._fault.impairment)
            self.began = now
            if self._fault.seconds is not None:
                crossed = self._net.near.received_bytes()
                asyncio.get_running_loop().call_later(self._fault.seconds, self._heal, crossed)
        if self._ended is not None:
            self._steps_after.append(now)

    def result(self, learner: LearnerThread, counts: Counts, *, replaced: int) -> Result:
        """Return the outcome of the run, which has ended."""
        is_recovered = self._ended is not None and len(self._steps_after) >= 2
        return Result(
            fault=self._fault.name,
            partition_s=self._fault.seconds,
            counts=counts,
            elapsed_s=round(time.monotonic() - (self.began or 0.0), 1),
            recovered_s=round(self._steps_after[1] - (self._ended or 0.0), 1) if is_recovered else None,
            crossed_mib=round((self._net.near.received_bytes() - self._before) / _MIB, 1),
            crossed_meanwhile=self.crossed_meanwhile,
            replaced=replaced,
            issued_again=sum(attempt for groups in learner.trained for _, attempt in groups),
        )

    def _heal(self, crossed: int) -> None:
        self.crossed_meanwhile = self._net.near.received_bytes() - crossed
        self._net.link.impair(Impairment())
        self._ended = time.monotonic()


def run_config() -> RunConfig:
    """Return the configuration of a run. All budgets have their defaults."""
    return stand_in_config(
        steps=_STEPS,
        prompts_per_step=_PROMPTS_PER_STEP,
        response_tokens=RESPONSE_TOKENS,
        settings=("training.max_staleness=1", f"rollout.workers={_WORKERS}"),
    )


async def run_under(fault: Fault, net: Network, folder: Path) -> Result:
    """Train a run on the connected cluster, with a fault after its first steps.

    Args:
        fault: The fault.
        net: Namespaces of the nodes.
        folder: Folder for the ledger.
    """
    config, ledger, run_id = run_config(), folder / f"{fault.name}.sqlite", f"two-nodes-{fault.name}"
    failures = config.failures
    monitor = HeartbeatMonitor(run_id, heartbeat_s=failures.heartbeat_s, missed_heartbeats=failures.missed_heartbeats)
    broker = start_broker(ledger, config, label_selector={"side": "near"})
    injection, learner = _Injection(fault, net), LearnerThread(broker, steps=_STEPS)
    async with monitor.running():
        await monitor.watch(broker, "broker", deadline_s=_START_TIMEOUT_S)
        async with open_far_pools(config, monitor, run_id=run_id, node={"side": "far"}) as far:
            await train(config, broker, far, learner, on_step=injection.on_step, timeout_s=_RUN_TIMEOUT_S)
            replaced = max(0, len(far.rollout.stats()) - _WORKERS)
    net.link.impair(Impairment())
    ray.kill(broker)
    return injection.result(learner, Counts.of(ledger), replaced=replaced)


@contextmanager
def ray_nodes(net: Network, folder: Path) -> Iterator[None]:
    """Start a Ray node in each namespace, and connect this process to the first one. It must be in that namespace."""
    address = f"{net.near.address}:{_PORT}"
    _start_node(net.near, folder / "near", "--head", f"--port={_PORT}", "--num-cpus=1", "--include-dashboard=false")
    _start_node(net.far, folder / "far", f"--address={address}", "--num-cpus=4")
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            _node_ip_address=net.near.address,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
    finally:
        ray.shutdown()


def _start_node(namespace: Namespace, folder: Path, *arguments: str) -> None:
    side = folder.name
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={namespace.address}"]
    command += [f"--labels=side={side}", f"--temp-dir={folder}", "--disable-usage-stats", *arguments]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        started = subprocess.run(
            namespace.program(*command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=_START_TIMEOUT_S,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    if started.returncode != 0:
        raise RuntimeError(f"the {side} node did not start:\n{log.read_text()}")


def faults_of(partition_s: float) -> list[Fault]:
    """Return all faults, with this duration of the partition in seconds."""
    return [
        Fault(name="partition", impairment=Impairment(is_cut=True), seconds=partition_s),
        Fault(name="loss", impairment=Impairment(loss=0.02)),
        Fault(name="latency", impairment=Impairment(delay_s=0.05)),
    ]


def main(
    partition_s: Annotated[float, typer.Option(help="Duration of the partition, seconds.", min=1)] = 20.0,
    faults: Annotated[str, typer.Option(help="Names of faults, separated by commas; all by default.")] = "",
    json_path: JsonPath = None,
) -> None:
    """Run over a link that is cut, loses packets or delays them. Exit with 1 if a group is lost or trained twice."""
    console = Console()
    if (reason := reason_to_skip()) is not None:
        console.print(f"skipped: {reason}")
        raise typer.Exit(SKIPPED)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    chosen = [fault for fault in faults_of(partition_s) if not faults or fault.name in faults.split(",")]
    results = []
    # Ray's sockets lie in these folders, and the path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary, network() as net, inside(net.near):
        folder = Path(temporary)
        with ray_nodes(net, folder):
            for fault in chosen:
                results.append(asyncio.run(run_under(fault, net, folder)))
                console.print(results[-1])
    _show(console, results, net.link.kind)
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    raise typer.Exit(0 if all(result.is_right for result in results) else 1)


def _show(console: Console, results: list[Result], kind: str) -> None:
    table = Table(
        "fault", "lost", "twice", "issued again", "replaced", "two further steps after", "run ended after", ""
    )
    for each in results:
        recovered = "" if each.recovered_s is None else f"{each.recovered_s:.1f} s"
        counts = [each.counts.lost, each.counts.twice, each.issued_again, each.replaced]
        verdict = "right" if each.is_right else "WRONG"
        table.add_row(each.fault, *map(str, counts), recovered, f"{each.elapsed_s:.1f} s", verdict)
    console.print(table)
    console.print(f"link: {kind}")


if __name__ == "__main__":
    typer.run(main)
