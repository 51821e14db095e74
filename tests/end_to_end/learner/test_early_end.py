"""A run that is stopped in mid-step and continued ends with the state of one that was not, bit for bit."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rlad.config.learner import CheckpointConfig
from rlad.errors import RunStoppedError
from rlad.integrity.manifest import verify

from .learner_reference import make_groups
from .test_learner import PROMPTS, STEPS, Run, checkpoints, exported, ray_folder, run_config, start_ray

pytestmark = [pytest.mark.engine, pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def cluster() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()
    shutil.rmtree(ray_folder(os.getpid()), ignore_errors=True)


def leaves(state: Any) -> list[Any]:
    """Return the tensors and values of a nested state, in order."""
    if isinstance(state, dict):
        return [leaf for key in sorted(state, key=str) for leaf in (str(key), *leaves(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for each in state for leaf in leaves(each)]
    return [state]


def learner_state(run_dir: Path) -> list[Any]:
    """Return weights, optimizer state and counters of the last checkpoint."""
    files = sorted((run_dir / "checkpoints" / f"step-{STEPS:06d}").rglob("*.pt"))
    assert len(files) == 3  # weights, and the optimizer state of two ranks
    return [leaf for file in files for leaf in leaves(torch.load(file, weights_only=False))]


def trained_groups(run_dir: Path) -> list[tuple[str, int]]:
    connection = sqlite3.connect(run_dir / "ledger.sqlite")
    found = connection.execute("SELECT uid, step FROM trained ORDER BY rowid").fetchall()
    connection.close()
    return found


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

    for found, expected in zip(learner_state(parts), learner_state(whole), strict=True):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(found, expected)
        elif isinstance(expected, str | int | float | bool | None):
            assert found == expected
    assert trained_groups(parts) == trained_groups(whole)
    first, second = exported(parts), exported(whole)
    assert all(torch.equal(first[name], second[name]) for name in second)
