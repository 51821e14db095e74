"""Policy that sizes the rollout pool from what the last steps waited for. The driver acts on its decisions."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from actors.pool.pool import PoolState
from pipelines.run.bottleneck import bottleneck
from rlad.config import RolloutConfig

# Number of consecutive steps that must agree: one long response is no reason for another engine.
_STEPS = 3
# Share of a step that one more worker must save.
_WORTH_ADDING = 0.10
# Largest share of a step spent waiting for generation at which a worker may be removed.
_HIDDEN = 0.05


class RolloutAutoscaler:
    """Adds a worker while generation bounds the steps, and removes one while generation is hidden and a worker idle."""

    def __init__(self, config: RolloutConfig) -> None:
        """
        Args:
            config: The `rollout` section, with `autoscale` and its bounds.
        """
        self._config = config
        self._proposals: deque[int] = deque(maxlen=_STEPS)

    def target_size(self, metrics: Mapping[str, float], workers: Mapping[str, int], pool: PoolState) -> int | None:
        """Return the size that the pool should get; None to leave it.

        Args:
            metrics: Metrics of the last trained step.
            workers: Number of workers of each pool.
            pool: State of the rollout pool. While it is changing there is no decision: the step ran with another size.
        """
        if not self._config.autoscale or self._config.max_workers is None:
            return None
        if pool.starting or pool.draining or pool.ready != pool.target:
            self._proposals.clear()
            return None
        self._proposals.append(self._propose(metrics, workers, pool.ready))
        if len(self._proposals) < _STEPS or len(set(self._proposals)) > 1 or self._proposals[0] == 0:
            return None
        size = min(max(pool.target + self._proposals[0], self._config.min_workers), self._config.max_workers)
        self._proposals.clear()
        return size if size != pool.target else None

    def _propose(self, metrics: Mapping[str, float], workers: Mapping[str, int], size: int) -> int:
        """Return the change of size that one step suggests: 1, 0 or -1."""
        found = bottleneck(metrics, workers)
        if found.pool == "rollout" and found.saving >= _WORTH_ADDING:
            return 1
        is_hidden = metrics["time/generate_s"] <= _HIDDEN * metrics["time/step_s"]
        # With one worker less, the others still have a fifth of their time idle.
        is_spare = metrics.get("idle/rollout", 0.0) * size >= 1 + 0.2 * (size - 1)
        return -1 if is_hidden and is_spare else 0
