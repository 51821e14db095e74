"""NuminaMath: `problem, solution, source, messages`; from version 1.5 on with `answer`. Proofs have no answer."""

from __future__ import annotations

from rlad.data.layouts.mathematics.problem import ProblemLayout

NUMINA = ProblemLayout(name="NuminaMath", required=("solution", "source"), left_out=("messages",))
