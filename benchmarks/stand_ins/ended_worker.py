"""Rollout worker for responses of given lengths: they end at their token budget but are reported as complete.

A truncated response earns no reward, so without this no response would be trained on.
"""

from __future__ import annotations

import numpy as np
import ray

from actors.messages import GroupSummary, SampleRequest
from actors.rollout.worker import RolloutWorker
from rlad.contracts import Columns, FinishReason


class EndedWorker(RolloutWorker):
    """Rollout worker that reports every response as ended by the end-of-sequence token."""

    @ray.method(num_returns=2)
    async def sample(self, request: SampleRequest) -> tuple[GroupSummary, Columns]:
        summary, columns = await super().sample(request)
        return summary, columns | {"finish_reasons": np.full_like(columns["finish_reasons"], FinishReason.STOP)}
