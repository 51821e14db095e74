"""Watch on the gap between the log-probabilities of rollout engine and learner, which shows that they disagree."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum

from rlad.config import RunConfig
from rlad.errors import EngineError

logger = logging.getLogger(__name__)

METRIC = "learner/logprob_gap_mean"
# A gap from bfloat16 arithmetic alone is about a tenth of the default limit; logits rounded to bfloat16 give a fifth.
_WARNING_SHARE = 0.2
_STEPS_IN_A_ROW = 3


class GapVerdict(Enum):
    """Decision on the gap of one step."""

    FINE = "fine"
    WARN = "warn"
    FAIL = "fail"


class LogprobGapLimit:
    """Judges the gap of each step: warns above a share of the limit, and fails after several steps above the limit."""

    def __init__(self, limit: float | None) -> None:
        """
        Args:
            limit: Limit of the mean gap, in nats; None means unlimited.
        """
        self._limit = limit
        self._above_in_a_row = 0

    @classmethod
    def of(cls, config: RunConfig) -> LogprobGapLimit:
        """Return the limit of a run. Under staleness the gap includes the change of the weights, so it has none."""
        return cls(None if config.training.max_staleness else config.learner.max_logprob_gap)

    def judge(self, gap: float | None) -> GapVerdict:
        """Return the decision on a step. NaN counts as above the limit.

        Args:
            gap: Mean gap of the step, in nats; None if no token was trained on or the gap has no meaning.
        """
        if self._limit is None or gap is None:
            return GapVerdict.FINE
        if gap <= self._limit:
            self._above_in_a_row = 0
            return GapVerdict.WARN if gap > _WARNING_SHARE * self._limit else GapVerdict.FINE
        self._above_in_a_row += 1
        return GapVerdict.FAIL if self._above_in_a_row == _STEPS_IN_A_ROW else GapVerdict.WARN

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a warning for a step with a large gap, and fail after several.

        Args:
            step: Number of the step, from 0.
            metrics: Metrics of the step.

        Raises:
            EngineError: The gap was above the limit in several steps in a row.
        """
        gap = metrics.get(METRIC)
        match self.judge(gap):
            case GapVerdict.WARN:
                logger.warning("step=%d %s=%.3g limit=%.3g", step, METRIC, gap, self._limit)
            case GapVerdict.FAIL:
                raise EngineError(
                    f"{METRIC} was above learner.max_logprob_gap ({self._limit:g} nats) in {_STEPS_IN_A_ROW} steps in "
                    f"a row, last {gap:.3g}: rollout engine and learner do not compute the same model. Run "
                    "`rlad doctor`; remove rollout.engine_args that change the computation (quantization, "
                    "hf_overrides); or correct the difference with objective.mismatch and raise "
                    "learner.max_logprob_gap"
                )
