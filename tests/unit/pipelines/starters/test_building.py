"""Building of starter models in the cache: once, atomically, even if processes are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from filelock import FileLock

from pipelines.starters.building import ensure_starters
from pipelines.starters.progress import StarterProgress
from rlad.errors import EngineError, PlanError
from rlad.models.locations import resolve_model
from rlad.starters import RECIPES, ROLES, is_missing_starter, starter_directory
from rlad.starters.cache import RECORD_FILE, starters_folder
from rlad.starters.recipes import RoleRecipe, StarterRecipe

SMOKE = RECIPES["kk-smoke"]


def _shortened(role: RoleRecipe, steps: int) -> RoleRecipe:
    return replace(role, phases=(replace(role.phases[0], steps=steps),))


def _recipe(steps: int) -> StarterRecipe:
    """Return the smoke recipe with only a few steps."""
    return replace(
        SMOKE,
        name="test",
        teacher=_shortened(SMOKE.teacher, steps),
        student=_shortened(SMOKE.student, steps),
        evaluation_puzzles=2,
    )


def _training_processes() -> list[BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.name.startswith("starter-")]


def _visible(cache: Path) -> list[str]:
    return sorted(path.name for path in starters_folder(cache).iterdir() if not path.name.endswith(".lock"))


def test_concurrent_callers_train_once_and_replace_incomplete_directories(tmp_path: Path) -> None:
    recipe = _recipe(steps=2)
    half_written = starter_directory(recipe, "teacher", tmp_path)
    half_written.mkdir(parents=True)
    (half_written / "config.json").write_text("{}")
    left_over = starters_folder(tmp_path) / ".unfinished-test-abc"
    (left_over / "student").mkdir(parents=True)
    begun: list[str] = []

    def make(_: int) -> dict[str, Path]:
        def on_progress(progress: StarterProgress) -> None:
            if progress.stage == "training" and progress.done == 0:
                begun.append(progress.role)

        return {**ensure_starters(recipe, tmp_path, on_progress)}

    with ThreadPoolExecutor(2) as callers:
        first, second = callers.map(make, range(2))

    assert sorted(begun) == ["student", "teacher"]
    assert first == second == {role: starter_directory(recipe, role, tmp_path) for role in ROLES}
    assert _visible(tmp_path) == sorted(path.name for path in first.values())
    assert all(
        {RECORD_FILE, "config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in made.iterdir()}
        for made in first.values()
    )


def test_killed_training_process_raises_an_error_and_leaves_no_files(tmp_path: Path) -> None:
    def kill(_: StarterProgress) -> None:
        (child,) = _training_processes()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(EngineError, match="training starter test/student died with exit code -9"):
        ensure_starters(_recipe(steps=100_000), tmp_path, kill, roles=["student"])
    assert _visible(tmp_path) == []


def test_interrupt_kills_training_processes_and_releases_the_lock(tmp_path: Path) -> None:
    def interrupt(_: StarterProgress) -> None:
        assert _training_processes()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_starters(_recipe(steps=100_000), tmp_path, interrupt, roles=["student"])
    assert _training_processes() == []
    assert _visible(tmp_path) == []
    with FileLock(starters_folder(tmp_path) / ".test.lock", timeout=0):
        pass


def test_training_error_is_raised_in_the_caller(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"training starter test/teacher failed:(.|\n)*distinct puzzles of 2 people"):
        ensure_starters(replace(_recipe(steps=1), evaluation_puzzles=100_000), tmp_path, roles=["teacher"])
    assert _visible(tmp_path) == []


def test_unwritable_cache_is_a_plan_error_that_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="Set RLAD_CACHE to a writable directory"):
        ensure_starters(_recipe(steps=1), tmp_path / "file")


def test_resolving_a_missing_starter_names_the_command_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAD_CACHE", str(tmp_path))
    assert is_missing_starter("starter:kk/teacher")
    with pytest.raises(PlanError, match=r"starter:kk/teacher does not exist yet .*run `rlad pretrain kk`"):
        resolve_model("starter:kk/teacher")
    starter_directory(RECIPES["kk"], "teacher").mkdir(parents=True)
    assert is_missing_starter("starter:kk/teacher")  # a directory without its record is incomplete
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("starter:kk/judge", "starter:kk/teacher or starter:kk/student"),
        ("starter:kk", "starter:kk/teacher or starter:kk/student"),
        ("starter:nothing/teacher", "unknown starter recipe 'nothing'"),
        ("no/such/model", "no model at 'no/such/model'"),
    ],
)
def test_invalid_model_path_is_rejected(path: str, problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        resolve_model(path)


def test_model_directory_resolves_to_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path), weights=False) == tmp_path
    assert not is_missing_starter(str(tmp_path))
