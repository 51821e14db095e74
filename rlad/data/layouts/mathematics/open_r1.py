"""OpenR1-Math: NuminaMath with generated solutions, which are left out."""

from __future__ import annotations

from rlad.data.layouts.mathematics.problem import ProblemLayout

OPEN_R1 = ProblemLayout(
    name="OpenR1",
    required=("answer", "uuid"),
    left_out=("messages", "generations", "finish_reasons", "is_reasoning_complete", "correctness_llama"),
)
