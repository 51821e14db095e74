"""Digests of starter recipes: they change exactly with what determines the model."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from rlad.errors import PlanError
from rlad.starters.recipes import RECIPES, ROLES, find_recipe

KK = RECIPES["kk"]


def test_digest_is_equal_in_all_processes() -> None:
    program = """
from rlad.starters.recipes import RECIPES
print(RECIPES['kk'].digest('teacher'), RECIPES['kk'].digest('student'))
"""
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


def test_digest_changes_with_shared_settings() -> None:
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


def test_digest_differs_between_roles_with_equal_recipes() -> None:
    alike = replace(KK, student=KK.teacher)
    assert alike.digest("student") != alike.digest("teacher")


def test_unknown_recipe_is_rejected_with_the_known_names() -> None:
    with pytest.raises(PlanError, match=r"unknown starter recipe 'k'; expected one of kk, kk-smoke"):
        find_recipe("k")
