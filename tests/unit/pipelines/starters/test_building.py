"""The cache of starter models: made once, whole or not at all, whatever happens to the processes that make them."""

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
from rlad.models.references import resolve_model
from rlad.starters import RECIPES, ROLES, is_missing_starter, starter_directory
from rlad.starters.cache import RECORD_FILE, starters_folder
from rlad.starters.recipes import RoleRecipe, StarterRecipe

SMOKE = RECIPES["kk-smoke"]


def _shortened(role: RoleRecipe, steps: int) -> RoleRecipe:
    return replace(role, phases=(replace(role.phases[0], steps=steps),))


def _recipe(steps: int) -> StarterRecipe:
    """The smoke recipe with a few steps only."""
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


def test_two_callers_at_once_train_once_and_half_written_directories_are_replaced(tmp_path: Path) -> None:
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


def test_a_killed_training_process_is_a_clear_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def kill(_: StarterProgress) -> None:
        (child,) = _training_processes()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(EngineError, match="training starter test/student died with exit code -9"):
        ensure_starters(_recipe(steps=100_000), tmp_path, kill, roles=["student"])
    assert _visible(tmp_path) == []


def test_an_interrupt_ends_the_training_processes_and_frees_the_lock(tmp_path: Path) -> None:
    def interrupt(_: StarterProgress) -> None:
        assert _training_processes()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_starters(_recipe(steps=100_000), tmp_path, interrupt, roles=["student"])
    assert _training_processes() == []
    assert _visible(tmp_path) == []
    with FileLock(starters_folder(tmp_path) / ".test.lock", timeout=0):
        pass


def test_an_error_in_training_reaches_the_caller_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"training starter test/teacher failed:(.|\n)*distinct puzzles of 2 people"):
        ensure_starters(replace(_recipe(steps=1), evaluation_puzzles=100_000), tmp_path, roles=["teacher"])
    assert _visible(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_a_plan_error_that_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="set RLAD_CACHE to a folder that can be written"):
        ensure_starters(_recipe(steps=1), tmp_path / "file")


def test_resolving_makes_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAD_CACHE", str(tmp_path))
    assert is_missing_starter("starter:kk/teacher")
    with pytest.raises(PlanError, match=r"starter:kk/teacher is not made yet .*run `rlad pretrain kk`"):
        resolve_model("starter:kk/teacher")
    starter_directory(RECIPES["kk"], "teacher").mkdir(parents=True)
    assert is_missing_starter("starter:kk/teacher")  # a directory without its record is not whole
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("starter:kk/judge", "starter:kk/teacher or starter:kk/student"),
        ("starter:kk", "starter:kk/teacher or starter:kk/student"),
        ("starter:nothing/teacher", "no starter recipe 'nothing'"),
        ("no/such/model", "no model at 'no/such/model'"),
    ],
)
def test_paths_that_name_no_model_are_refused(path: str, problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        resolve_model(path)


def test_a_model_directory_resolves_to_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path
    assert not is_missing_starter(str(tmp_path))
