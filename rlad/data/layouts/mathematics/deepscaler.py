"""DeepScaleR: `problem, answer, solution`."""

from __future__ import annotations

from rlad.data.layouts.mathematics.problem import ProblemLayout

DEEPSCALER = ProblemLayout(name="DeepScaleR", required=("answer", "solution"))
