"""Direct weight transfers over gloo: into two real engines, and in a run with a ZeRO-3 learner of two ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from actors.engines.vllm_engine.gloo_group import GlooGroup
from actors.engines.vllm_engine.settings import VllmSettings
from actors.rollout.worker import RolloutWorker
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.contracts import RolloutGroup, WeightsManifest
from rlad.errors import WeightsMismatchError
from rlad.weight_file import layout_checksum

from ..live_run import LiveRun
from .rollout_reference import largest_gap, load_policy, request

# The file takes 3 minutes on an idle machine. Waits for the run fail when it stalls, see `LiveRun`.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
STEPS = 60
OVERRIDES = [
    "weights.transport=gloo",
    "learner.ranks=2",
    "learner.zero_stage=3",
    "training.updates_per_step=1",
    f"training.steps={STEPS}",
    "training.max_staleness=1",
    "objective={name: grpo}",
    "teacher=null",
    "evaluation.every_steps=0",
    "checkpoints.every_steps=1",
    "cluster.num_cpus=4",
    "learner.lora={rank: 8}",
    "learner.optimizer.lr=5e-4",
    "learner.optimizer.schedule=cosine",
]
# Timeout of a single call to an engine. A call takes seconds; starting an engine takes 20 s on an idle machine.
CALL_TIMEOUT_S = 300


def rlad(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def processes_of(run: subprocess.Popen[str], actor: str) -> list[psutil.Process]:
    children = psutil.Process(run.pid).children(recursive=True)
    return [process for process in children if actor in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def workers(make_model: Callable[..., Path]) -> Iterator[list[Any]]:
    """Two rollout workers with real engines, tied embeddings and their initial weights, for gloo transfers."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    settings = VllmSettings(
        model_path=str(make_model(tied=True)),
        dtype="float32",
        max_sequence_tokens=320,
        max_sequences=64,
        seed=0,
        on_gpu=False,
        tensor_parallel=1,
        gpu_memory_fraction=0.9,
        kv_cache_gib=1,
        threads=1,
        weight_transport="gloo",
    )
    actors = [ray.remote(RolloutWorker).remote(settings, "test-sent") for _ in range(2)]
    ray.get([actor.start.remote() for actor in actors], timeout=2 * CALL_TIMEOUT_S)
    yield actors
    ray.get([actor.close.remote() for actor in actors], timeout=CALL_TIMEOUT_S)
    ray.shutdown()


class Sender:
    """Learner side of a transfer to one worker, written out by hand."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            init_info = {
                "master_address": "127.0.0.1",
                "master_port": probe.getsockname()[1],
                "world_size": 2,
                "timeout_s": float(CALL_TIMEOUT_S),
            }
        joined = worker.join_transfer.remote({**init_info, "rank_offset": 1})
        self._group: GlooGroup | None = GlooGroup(
            address="127.0.0.1", port=init_info["master_port"], rank=0, world_size=2, timeout_s=CALL_TIMEOUT_S
        )
        ray.get(joined, timeout=CALL_TIMEOUT_S)

    def send(self, policy: torch.nn.Module, version: int, *, tensors: int | None = None) -> None:
        """Send a policy's weights and check the manifest that the worker reports.

        Args:
            policy: Policy to send.
            version: Policy version.
            tensors: Number of tensors to send before the connection is closed; None sends all.
        """
        named = dict(policy.named_parameters())
        layout = (list(named), ["float32"] * len(named), [list(tensor.shape) for tensor in named.values()])
        manifest = WeightsManifest(
            version=version,
            checksum=layout_checksum(*layout),
            num_bytes=sum(tensor.nbytes for tensor in named.values()),
        )
        update = dict(zip(("names", "dtype_names", "shapes"), layout, strict=True))
        reported = self._worker.receive_weights.remote(update, manifest)
        for tensor in list(named.values())[:tensors]:
            assert self._group is not None
            self._group.broadcast(tensor.detach())
        if tensors is not None:
            self._group = None
        assert ray.get(reported, timeout=CALL_TIMEOUT_S) == manifest


def sample(worker: Any) -> RolloutGroup:
    _, columns = worker.sample.remote(request())
    return RolloutGroup.from_columns(ray.get(columns, timeout=CALL_TIMEOUT_S))


def version_of(worker: Any) -> int | None:
    version: int | None = ray.get(worker.version.remote(), timeout=CALL_TIMEOUT_S)
    return version


def test_engine_samples_with_transferred_weights_and_refuses_after_a_partial_transfer(
    workers: list[Any], make_model: Callable[..., Path]
) -> None:
    worker = workers[0]
    old, new, other = (load_policy(make_model(tied=True, seed=seed)) for seed in (0, 1, 2))
    sender = Sender(worker)
    sender.send(new, 1)
    group = sample(worker)
    assert group.policy_versions.tolist() == [1] * group.num_tokens
    assert largest_gap(new, group) <= 1e-4
    assert largest_gap(old, group) > 0.1
    sender = Sender(worker)  # replaces the process group
    sender.send(other, 2)
    assert largest_gap(other, sample(worker)) <= 1e-4

    with pytest.raises(WeightsMismatchError, match="the engine did not load the weights"):
        sender.send(new, 3, tensors=5)
    assert version_of(worker) is None
    with pytest.raises(WeightsMismatchError, match="no weights to sample from"):
        sample(worker)


def test_engine_has_no_version_after_a_partial_first_transfer(
    workers: list[Any], make_model: Callable[..., Path]
) -> None:
    worker = workers[1]
    with pytest.raises(WeightsMismatchError, match="the engine did not load the weights"):
        Sender(worker).send(load_policy(make_model(tied=True, seed=1)), 1, tensors=5)
    assert version_of(worker) is None


@pytest.mark.slow
def test_engines_hold_the_learners_weights_when_workers_join_and_processes_are_killed(tmp_path: Path) -> None:
    """Kill a worker and a learner rank of a run that updates weights during generation.

    The student has adapters, so the engines receive sums of weights and adapters, which the learner itself never
    computes with.

    Tokens of the previous version show a gap between the log-probabilities of sampler and learner, in proportion to the
    difference of the versions. At the end of the cosine schedule that gap is a hundredth of the one in the middle, so
    an engine that kept older weights would be seen.
    """
    directory = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "pipelines", "run", str(SMOKE), *OVERRIDES, "--run-dir", str(directory.path)]
    stderr = tmp_path / "stderr"
    with (
        stderr.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, text=True, start_new_session=True) as process,
    ):
        run = LiveRun(process, directory, stderr)
        try:
            run.wait_for_steps(2)

            # Kill the only worker. The step cannot end before a new worker has received the learner's current version.
            [worker] = processes_of(process, "ray::RolloutWorker")
            assert rlad("scale", directory.path, "rollout=2").returncode == 0
            worker.send_signal(signal.SIGKILL)
            run.wait_for_steps(run.steps() + 2)
            run.wait_for(lambda: '"ready": 2' in rlad("status", directory.path, "--json").stdout, "two new workers")
            run.wait_for_steps(run.steps() + 2)

            ranks = processes_of(process, "RayTrainWorker")
            assert len(ranks) == 2
            ranks[0].send_signal(signal.SIGKILL)
            assert run.steps() < STEPS - 5, "too few steps are left for the restarted ranks"
            run.wait_for_end()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, stderr.read_text()
    assert "Traceback" not in stderr.read_text()
    check_metrics(directory)
    counts = json.loads(rlad("ledger", directory.path, "--json").stdout)
    assert (counts["lost"], counts["duplicated"]) == (0, 0)


def check_metrics(directory: RunDirectory) -> None:
    metrics = read_json_lines(directory.metrics)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert [line["step"] for line in read_json_lines(directory.evaluations)] == [0, STEPS]
    staleness = [line["rollout/staleness_max"] for line in metrics]
    assert max(staleness) == 1
    gaps = [line["learner/logprob_gap_max"] for line in metrics]
    fresh_gaps = [gap for gap, stale in zip(gaps, staleness, strict=True) if not stale]
    assert max(fresh_gaps) <= 1e-4, "tokens of the learner's own version"
    assert max(gaps) > 1e-2
    assert gaps[-1] <= max(gaps) / 10, "the engines hold the weights of the last steps"
    assert sorted(line["learner/send_s"] for line in metrics)[len(metrics) // 2] > 0
