"""Learner under real Ray Train and DeepSpeed, with a real broker. Ranks and drivers are killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.train import Result
from torch import Tensor

from rlad.contracts import ScoredGroup
from rlad.errors import ContractError, RunStoppedError

from .learner_reference import ReferenceTrainer, make_groups, relative_error, sequences_of
from .learner_run import (
    PROMPTS,
    STALL_TIMEOUT_S,
    STEPS,
    UPDATES,
    Run,
    checkpoints,
    exported,
    published,
    ray_folder,
    run_config,
    start_ray,
    start_weights,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

MakeModel = Callable[..., Path]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()
    shutil.rmtree(ray_folder(os.getpid()), ignore_errors=True)


@pytest.fixture(scope="module")
def model_path(make_model: MakeModel) -> Path:
    return make_model(tied=True)


@pytest.fixture(scope="module")
def groups(model_path: Path) -> dict[str, ScoredGroup]:
    return make_groups(model_path, count=STEPS * PROMPTS)


@pytest.fixture(scope="module")
def reference(model_path: Path, groups: dict[str, ScoredGroup]) -> list[dict[str, Tensor]]:
    """Weights of versions 0 to STEPS, computed with plain PyTorch."""
    config = run_config(model_path)
    trainer = ReferenceTrainer(model_path, config.learner.optimizer)
    uids, size = list(groups), PROMPTS // UPDATES
    versions = [trainer.weights()]
    for step in range(STEPS):
        for update in range(UPDATES):
            first = step * PROMPTS + update * size
            trainer.update(groups, sequences_of({uid: groups[uid] for uid in uids[first : first + size]}))
        versions.append(trainer.weights())
    return versions


async def test_published_versions_match_plain_pytorch(
    model_path: Path, groups: dict[str, ScoredGroup], tmp_path: Path
) -> None:
    """Steps of two passes with two updates each: every pass takes the behaviour policy of sampling."""
    config = run_config(model_path, zero_stage=3, passes=2)
    trainer, uids, size = ReferenceTrainer(model_path, config.learner.optimizer), list(groups), PROMPTS // UPDATES
    run = Run(config, tmp_path, groups)
    reports = [await run.start()]
    start = start_weights(model_path)
    assert all(torch.equal(tensor, start[name]) for name, tensor in published(reports[0]).items())
    for step in range(STEPS):
        reports.append(await run.train(step))
        for first in (step * PROMPTS, step * PROMPTS + size) * 2:
            trainer.update(groups, sequences_of({uid: groups[uid] for uid in uids[first : first + size]}))
        weights = published(reports[-1])
        assert relative_error(weights, trainer.weights(), start) <= 2e-5
    await run.end()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in exported(tmp_path).items())

    assert [report.version for report in reports] == [0, 1, 2, 3, 4]
    last = reports[-1].metrics
    assert last["learner/updates"] == 2 * UPDATES
    assert last["learner/tokens"] == 2 * sum(
        groups[uid].group.num_tokens for update in run.updates(STEPS - 1) for uid in update
    )
    distances = [last[f"objective/log_ratio_behaviour_abs_mean_pass_{number}"] for number in (1, 2)]
    assert distances[0] != distances[1]
    assert all(last[f"learner/{name}_s"] > 0 for name in ("wait", "train", "publish"))
    # The time of a checkpoint is reported with the next step.
    assert [report.metrics["learner/checkpoint_s"] > 0 for report in reports[1:]] == [False, False, True, False]
    assert checkpoints(tmp_path) == ["step-000004"]  # keep: 1
    counts = await run.broker.counts.remote()
    assert (counts["committed"], counts["lost"], counts["duplicated"]) == (STEPS * PROMPTS, 0, 0)


async def test_killing_a_rank_in_mid_step_does_not_change_the_weights(
    model_path: Path, groups: dict[str, ScoredGroup], reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    run = Run(run_config(model_path), tmp_path, groups)
    await run.start()
    for step in range(3):
        await run.train(step)
    missing = await run.train_half(3)
    ranks = [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    assert len(ranks) == 2
    os.kill(ranks[0].pid, signal.SIGKILL)

    report = await run.finish(3, missing)  # restarts from the checkpoint after step 1, so step 2 is trained again
    assert relative_error(published(report), reference[4], start_weights(model_path)) <= 2e-5
    assert (await run.poll("wait_started")).version == 2
    await run.end()
    assert all(not rank.is_running() for rank in ranks)
    counts = await run.broker.counts.remote()
    assert (counts["committed"], counts["lost"], counts["duplicated"]) == (STEPS * PROMPTS, 0, 0)
    assert checkpoints(tmp_path) == ["step-000004"]


@pytest.mark.chaos
async def test_new_driver_continues_from_the_checkpoint_of_a_killed_one(
    model_path: Path, groups: dict[str, ScoredGroup], reference: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    # Reading the output blocks the event loop, which is idle at this point.
    command = [
        sys.executable,
        "-c",
        f"from {__name__} import run_until_killed; run_until_killed({str(model_path)!r}, {str(tmp_path)!r})",
    ]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert driver.stdout is not None
    for line in driver.stdout:
        if line == "in step 2\n":
            break
    else:
        pytest.fail(f"the first driver exited with {driver.wait()} before step 2")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    shutil.rmtree(ray_folder(driver.pid), ignore_errors=True)
    half_written = tmp_path / "checkpoints" / ".partial-step-000004"
    half_written.mkdir()

    run = Run(run_config(model_path, ranks=1), tmp_path, groups)
    assert Result.from_path(tmp_path / "checkpoints").metrics == {"step": 2}
    started = await run.start()
    assert started.version == 2
    assert relative_error(published(started), reference[2], start_weights(model_path)) <= 2e-5
    for step in (2, 3):
        report = await run.train(step)
    assert await run.poll("wait_exported")
    assert relative_error(published(report), reference[4], start_weights(model_path)) <= 2e-5, (
        "the weights must stay available after the export"
    )
    await run.end()
    counts = await run.broker.counts.remote()
    assert (counts["committed"], counts["lost"], counts["duplicated"], counts["retried"]) == (
        STEPS * PROMPTS,
        0,
        0,
        PROMPTS,
    )
    assert checkpoints(tmp_path) == ["step-000004"]


def run_until_killed(model_path: str, run_dir: str) -> None:
    """Train two steps, begin a third, print a line and wait to be killed. Runs in a separate process."""
    start_ray()

    async def drive() -> None:
        run = Run(run_config(model_path, ranks=1), Path(run_dir), make_groups(model_path, count=STEPS * PROMPTS))
        await run.start()
        for step in (0, 1):
            await run.train(step)
        await run.train_half(2)
        print("in step 2", flush=True)
        await asyncio.sleep(STALL_TIMEOUT_S)

    asyncio.run(drive())


async def test_error_of_one_rank_ends_all_ranks_without_a_restart(
    model_path: Path, groups: dict[str, ScoredGroup], tmp_path: Path
) -> None:
    run = Run(run_config(model_path), tmp_path, groups)
    await run.start()
    first, second, *_ = await run.open(0)
    # Its single response goes to one rank, with the scores of another group.
    await run.add(0, first, scores_of=second, responses=1)
    await run.add(0, second)
    with pytest.raises(ContractError, match="TeacherScores belongs to g1 attempt 0, but the group is g0 attempt 0"):
        await run.end()
    await run.learner.close()


async def test_stopping_a_run_ends_ranks_that_wait_for_a_batch(
    model_path: Path, groups: dict[str, ScoredGroup], tmp_path: Path
) -> None:
    run = Run(run_config(model_path), tmp_path, groups)
    await run.start()
    await run.train_half(0)
    await run.broker.stop.remote("enough")
    await run.learner.close()
    assert isinstance(run.learner.failure(), RunStoppedError)
    with pytest.raises(RunStoppedError, match="enough"):
        await run.learner.wait()
