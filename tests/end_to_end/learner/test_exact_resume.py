"""Ten steps equal five, a kill, a resume and five, bit for bit: the learner's ranks and the step pipeline are real.

The sampling engine is deterministic and uses the weights of each version, so that a difference in any step changes the
data of all later ones.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from actors.experience.broker import ExperienceBroker
from actors.learner.group import LearnerGroup
from actors.learner.settings import LearnerSettings
from pipelines.resolution.prompts import EncodedPrompts
from pipelines.simulation.harness import open_pipeline, stand_in_prompts
from pipelines.training.broker_client import BrokerClient
from pipelines.training.startup import shard_policy
from rlad.config import RunConfig
from rlad.config.learner import CheckpointConfig

from .learner_run import STALL_TIMEOUT_S, checkpoints, learner_state, ray_folder, run_config, start_ray, trained_groups
from .learner_run import require_equal as require_equal_state
from .seeded_engine import SeededEngine

pytestmark = [pytest.mark.engine, pytest.mark.chaos, pytest.mark.timeout(1800)]

STEPS, CHECKPOINT_EVERY, PROMPTS = 10, 5, 12  # three and a third epochs
RESPONSE_TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()
    shutil.rmtree(ray_folder(os.getpid()), ignore_errors=True)


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path]) -> tuple[Path, Path]:
    """Directories of the student and of the teacher."""
    return make_model(tied=True), make_model(tied=True, seed=1)


@pytest.fixture(scope="module")
def whole(models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SeededEngine]:
    """A run of ten steps without a fault, and its engine."""
    folder, engine = tmp_path_factory.mktemp("whole"), SeededEngine(*models)
    asyncio.run(drive(models[0], folder, engine))
    assert sorted(engine.digests) == list(range(STEPS + 1))
    assert len(set().union(*engine.digests.values())) == STEPS + 1, "every step changes the weights"
    return folder, engine


def exact_config(model_path: Path) -> RunConfig:
    # A shard is an update: smaller ones depend on the order in which groups arrive, and so does the order of a sum.
    config = run_config(model_path, steps=STEPS, micro_batch_tokens=10_000)
    rollout = config.rollout.model_copy(update={"max_response_tokens": RESPONSE_TOKENS})
    return config.model_copy(update={"checkpoints": CheckpointConfig(every_steps=CHECKPOINT_EVERY), "rollout": rollout})


def prompts() -> EncodedPrompts:
    random = np.random.default_rng(0)
    found = stand_in_prompts(PROMPTS)
    token_ids = [random.integers(2, 28, int(random.integers(3, 12))).astype(np.int32) for _ in range(PROMPTS)]
    return EncodedPrompts(records=found.records, token_ids=token_ids)


async def drive(
    model_path: Path, run_dir: Path, engine: SeededEngine, on_step: Callable[[int], None] = lambda _: None
) -> None:
    """Run all steps from the newest checkpoint of a directory."""
    config = exact_config(model_path)
    broker = ray.remote(ExperienceBroker).options(num_cpus=0)
    handle = broker.remote(str(run_dir / "ledger.sqlite"), shard_policy(config), config.rollout.group_size)
    settings = LearnerSettings.of(config, student=config.student.path, run_dir=run_dir, broker=handle)
    learner = LearnerGroup(settings, run_id="exact-resume")
    learner.start()
    async with asyncio.timeout(STALL_TIMEOUT_S):
        async with open_pipeline(config, prompts(), engine.pools(), handle, clock=time.time) as (pipeline, first):
            for step in range(first, STEPS):
                await pipeline.train_step(step)
                on_step(step)
            client = BrokerClient(handle)
            await client.wait_exported(deadline_s=STALL_TIMEOUT_S)
        await client.dismiss()
        await learner.wait()
    await learner.close()
    ray.kill(handle)


def drive_until_killed(model_path: str, teacher_path: str, run_dir: str) -> None:
    """Run, and print the number of each finished step. Runs in a process of its own."""
    start_ray()

    def report(step: int) -> None:
        print(f"step {step}", flush=True)

    asyncio.run(drive(Path(model_path), Path(run_dir), SeededEngine(Path(model_path), Path(teacher_path)), report))


def require_equal(run_dir: Path, whole: Path) -> None:
    require_equal_state(learner_state(run_dir, STEPS), learner_state(whole, STEPS))
    assert trained_groups(run_dir) == trained_groups(whole)


def kill_first_rank() -> None:
    ranks = [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    ranks[0].kill()


async def test_kill_of_the_driver_and_a_resume_change_nothing(
    models: tuple[Path, Path], whole: tuple[Path, SeededEngine], tmp_path: Path
) -> None:
    folder, expected = whole
    arguments = ", ".join(repr(str(path)) for path in (*models, tmp_path))
    command = [sys.executable, "-c", f"from {__name__} import drive_until_killed; drive_until_killed({arguments})"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - nothing else runs
    assert driver.stdout is not None
    for line in driver.stdout:
        if line == f"step {CHECKPOINT_EVERY + 1}\n":  # two steps after the checkpoint
            break
    else:
        pytest.fail(f"the first driver exited with {driver.wait()}")
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=STALL_TIMEOUT_S)  # closes the pipe
    shutil.rmtree(ray_folder(driver.pid), ignore_errors=True)
    assert checkpoints(tmp_path) == [f"step-{CHECKPOINT_EVERY:06d}"]

    engine, steps = SeededEngine(*models), list[int]()
    await drive(models[0], tmp_path, engine, steps.append)
    assert steps == list(range(CHECKPOINT_EVERY, STEPS))
    assert engine.digests == {version: expected.digests[version] for version in range(CHECKPOINT_EVERY, STEPS + 1)}
    require_equal(tmp_path, folder)


async def test_kill_of_a_rank_between_optimizer_step_and_checkpoint_changes_nothing(
    models: tuple[Path, Path], whole: tuple[Path, SeededEngine], tmp_path: Path
) -> None:
    """The ranks report a step when its last update is applied, and write its checkpoint after that."""
    folder, expected = whole
    due = [CHECKPOINT_EVERY, CHECKPOINT_EVERY + 3]

    def kill(version: int) -> None:
        if version in due:
            due.remove(version)
            kill_first_rank()

    engine = SeededEngine(*models, on_report=kill)
    await drive(models[0], tmp_path, engine)
    assert not due
    assert engine.digests == expected.digests
    require_equal(tmp_path, folder)
