"""MATH and MATH-500: the answer is the last box of the solution, where no answer column gives it."""

from __future__ import annotations

from rlad.data.layouts.mathematics.problem import ProblemLayout

MATH = ProblemLayout(name="MATH", required=("solution", "level"))
