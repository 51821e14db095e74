"""Weights that go straight into vLLM engines: into two from this process, and in a live run from a ZeRO-3 learner of two ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
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

from .rollout_reference import largest_gap, load_policy, request

pytestmark = pytest.mark.engine

SMOKE = Path(__file__).parents[3] / "configs" / "smoke_cpu.yaml"
STEPS = 24
OVERRIDES = [
    "weights.transport=gloo", "learner.ranks=2", "learner.zero_stage=3", "training.updates_per_step=1", f"training.steps={STEPS}",
    "training.max_staleness=1", "objective={name: grpo}", "teacher=null", "evaluation.every_steps=0", "checkpoints.every_steps=1", "cluster.num_cpus=4",
    "learner.lora={rank: 8}", "learner.optimizer.lr=5e-4", "learner.optimizer.schedule=cosine",
]  # fmt: skip
DEADLINE_S = 240


def rlad(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def processes_of(run: subprocess.Popen[str], actor: str) -> list[psutil.Process]:
    return [each for each in psutil.Process(run.pid).children(recursive=True) if actor in " ".join(each.cmdline())]


def wait_for(claim: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        assert process.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def workers(make_model: Callable[..., Path]) -> Iterator[list[Any]]:
    """Two rollout workers with real engines that take weights by gloo and have got none yet; their embeddings are tied."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    settings = VllmSettings(
        model_path=str(make_model(tied=True)), dtype="float32", max_sequence_tokens=320, max_sequences=64, seed=0, on_gpu=False, tensor_parallel=1,
        gpu_memory_fraction=0.9, kv_cache_gib=1, threads=1, weight_transport="gloo",
    )  # fmt: skip
    actors = [ray.remote(RolloutWorker).remote(settings, "test-sent") for _ in range(2)]
    ray.get([actor.start.remote() for actor in actors], timeout=300)
    yield actors
    ray.get([actor.close.remote() for actor in actors], timeout=30)
    ray.shutdown()


class Sender:
    """The learner's part, by hand."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = {
                "master_address": "127.0.0.1",
                "master_port": probe.getsockname()[1],
                "world_size": 2,
                "timeout_s": 30.0,
            }
        joined = worker.join_transfer.remote({**place, "rank_offset": 1})
        self._group: GlooGroup | None = GlooGroup(
            address="127.0.0.1", port=place["master_port"], rank=0, world_size=2, timeout_s=30.0
        )
        ray.get(joined, timeout=30)

    def send(self, policy: torch.nn.Module, version: int, *, tensors: int | None = None) -> Any:
        """What the worker says to a policy's weights, of which only the first so many are sent before the connection is lost."""
        named = dict(policy.named_parameters())
        layout = (list(named), ["float32"] * len(named), [list(tensor.shape) for tensor in named.values()])
        manifest = WeightsManifest(
            version=version,
            checksum=layout_checksum(*layout),
            num_bytes=sum(tensor.nbytes for tensor in named.values()),
        )
        update = dict(zip(("names", "dtype_names", "shapes"), layout, strict=True))
        received = self._worker.receive_weights.remote(update, manifest)
        for tensor in list(named.values())[:tensors]:
            assert self._group is not None
            self._group.broadcast(tensor.detach())
        if tensors is not None:
            self._group = None
        assert ray.get(received, timeout=60) == manifest
        return manifest


def sampled(worker: Any) -> RolloutGroup:
    _, columns = worker.sample.remote(request())
    return RolloutGroup.from_columns(ray.get(columns, timeout=60))


def test_an_engine_samples_with_what_it_was_sent_and_not_at_all_with_half_of_it(
    workers: list[Any], make_model: Callable[..., Path]
) -> None:
    worker = workers[0]
    old, new, other = (load_policy(make_model(tied=True, seed=seed)) for seed in (0, 1, 2))
    sender = Sender(worker)
    sender.send(new, 1)
    group = sampled(worker)
    assert group.policy_versions.tolist() == [1] * group.num_tokens
    assert largest_gap(new, group) <= 1e-4
    assert largest_gap(old, group) > 0.1
    sender = Sender(worker)  # a new group takes the old one's place
    sender.send(other, 2)
    assert largest_gap(other, sampled(worker)) <= 1e-4

    with pytest.raises(WeightsMismatchError, match="the engine did not load the weights"):
        sender.send(new, 3, tensors=5)
    assert ray.get(worker.version.remote(), timeout=30) is None
    with pytest.raises(WeightsMismatchError, match="no weights to sample from"):
        sampled(worker)


def test_an_engine_whose_very_first_update_fails_half_way_does_not_serve(
    workers: list[Any], make_model: Callable[..., Path]
) -> None:
    worker = workers[1]
    with pytest.raises(WeightsMismatchError, match="the engine did not load the weights"):
        Sender(worker).send(load_policy(make_model(tied=True, seed=1)), 1, tensors=5)
    assert ray.get(worker.version.remote(), timeout=30) is None


def test_engines_hold_the_learners_weights_whoever_joins_dies_or_is_restarted(tmp_path: Path) -> None:
    """A run that works ahead, so weights come in mid-generation, and whose student has adapters, so engines get sums that the learner never computes with.

    Tokens of the version before are seen in the log-probabilities by as much as versions differ: at the end of the learning rate's cosine a hundredth of what
    it was in the middle. Weights that some engine has kept from earlier would still be seen then.
    """
    run = RunDirectory(tmp_path / "run")

    def steps() -> int:
        return len(read_json_lines(run.metrics))

    command = [sys.executable, "-m", "pipelines", "run", str(SMOKE), *OVERRIDES, "--run-dir", str(run.path)]
    said = tmp_path / "stderr"
    with (
        said.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, text=True, start_new_session=True) as process,
    ):
        try:
            wait_for(lambda: steps() >= 2, process, "first steps")

            # The only worker: the step cannot end before one of those that start now has been sent the version that the learner holds meanwhile.
            [worker] = processes_of(process, "ray::RolloutWorker")
            assert rlad("scale", run.path, "rollout=2").returncode == 0
            worker.send_signal(signal.SIGKILL)
            hurt_at = steps()
            wait_for(lambda: steps() >= hurt_at + 2, process, "steps with another worker")
            wait_for(lambda: '"ready": 2' in rlad("status", run.path, "--json").stdout, process, "two other workers")
            grown_at = steps()
            wait_for(lambda: steps() >= grown_at + 2, process, "steps with two other workers")

            ranks = processes_of(process, "RayTrainWorker")
            assert len(ranks) == 2
            ranks[0].send_signal(signal.SIGKILL)
            lost_at = steps()
            assert lost_at < STEPS - 5, "there are steps left for ranks that restart"
            process.wait(timeout=DEADLINE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said.read_text()
    assert "Traceback" not in said.read_text()
    metrics = read_json_lines(run.metrics)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert [line["step"] for line in read_json_lines(run.evaluations)] == [0, STEPS]
    staleness = [line["rollout/staleness_max"] for line in metrics]
    assert max(staleness) == 1
    gaps = [line["learner/logprob_gap_max"] for line in metrics]
    assert max(gap for gap, stale in zip(gaps, staleness, strict=True) if not stale) <= 1e-4, (
        "tokens of the learner's own version"
    )
    assert max(gaps) > 1e-2
    assert gaps[-1] <= max(gaps) / 10, "the engines have the weights that all the steps have led to"
    assert sorted(line["learner/send_s"] for line in metrics)[len(metrics) // 2] > 0
    counts = json.loads(rlad("ledger", run.path, "--json").stdout)
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
