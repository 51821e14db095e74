"""A run that is stopped in mid-step and continued ends with the state of one that was not, bit for bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from rlad.config.learner import CheckpointConfig
from rlad.errors import RunStoppedError
from rlad.integrity.manifest import verify

from .learner_reference import make_groups
from .learner_run import (
    PROMPTS,
    STEPS,
    Run,
    checkpoints,
    exported,
    learner_state,
    ray_folder,
    require_equal,
    run_config,
    start_ray,
    trained_groups,
)

pytestmark = [pytest.mark.engine, pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()
    shutil.rmtree(ray_folder(os.getpid()), ignore_errors=True)


async def test_stop_in_mid_step_and_resume_equal_an_uninterrupted_run(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    model_path = make_model(tied=True)
    groups = make_groups(model_path, count=STEPS * PROMPTS)
    config = run_config(model_path, zero_stage=2)
    config = config.model_copy(update={"checkpoints": CheckpointConfig(every_steps=1000)})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()

    run = Run(config, whole, groups)
    await run.start()
    for step in range(STEPS):
        await run.train(step)
    await run.end()

    run = Run(config, parts, groups)
    await run.start()
    for step in (0, 1):
        await run.train(step)
    await run.train_half(2)
    assert await run.broker.end.remote("stopped by SIGTERM")
    with pytest.raises(RunStoppedError, match="stopped by SIGTERM after 2 steps; --resume continues"):
        await run.learner.wait()
    await run.learner.close()
    assert checkpoints(parts) == ["step-000002"]
    verify(parts / "checkpoints" / "step-000002", remedy="")
    ray.kill(run.broker)

    run = Run(config, parts, groups)
    assert (await run.start()).version == 2
    for step in (2, 3):
        await run.train(step)
    await run.end()

    require_equal(learner_state(parts, STEPS), learner_state(whole, STEPS))
    assert trained_groups(parts) == trained_groups(whole)
    first, second = exported(parts), exported(whole)
    assert all(torch.equal(first[name], second[name]) for name in second)
