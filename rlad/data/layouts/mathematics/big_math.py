"""Big-Math: `problem, answer` with the solve rate of a small model."""

from __future__ import annotations

from rlad.data.layouts.mathematics.problem import ProblemLayout

BIG_MATH = ProblemLayout(name="Big-Math", required=("answer", "llama8b_solve_rate"))
