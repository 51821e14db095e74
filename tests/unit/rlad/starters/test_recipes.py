"""A recipe's digest names its models: it changes with what makes them, and with nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from rlad.errors import PlanError
from rlad.starters.recipes import RECIPES, ROLES, find_recipe

KK = RECIPES["kk"]


def test_digest_is_the_same_in_every_process() -> None:
    program = "from rlad.starters.recipes import RECIPES; print(RECIPES['kk'].digest('teacher'), RECIPES['kk'].digest('student'))"
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert result.stdout.split() == [KK.digest("teacher"), KK.digest("student")]


def test_digest_changes_with_what_both_models_share() -> None:
    for changed in (
        replace(KK, people={2: 0.1, 3: 0.4, 4: 0.4}),
        replace(KK, training_puzzles=KK.training_puzzles + 1),
        replace(KK, tokens_per_step=KK.tokens_per_step + 1),
        replace(KK, evaluation_puzzles=KK.evaluation_puzzles + 1),
    ):
        assert all(changed.digest(role) != KK.digest(role) for role in ROLES)


def test_digest_of_one_role_does_not_depend_on_the_other() -> None:
    changed = replace(KK, student=replace(KK.student, seed=KK.student.seed + 1))
    assert changed.digest("student") != KK.digest("student")
    assert changed.digest("teacher") == KK.digest("teacher")


def test_two_roles_trained_alike_still_have_names_of_their_own() -> None:
    alike = replace(KK, student=KK.teacher)
    assert alike.digest("student") != alike.digest("teacher")


def test_unknown_recipe_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(PlanError, match=r"no starter recipe 'k'; there are kk, kk-smoke"):
        find_recipe("k")
