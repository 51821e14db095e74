"""Whether the rollout pool should grow or shrink, from what the last steps waited for. A policy that only decides; the run acts."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from actors.pool.pool import PoolState
from pipelines.run.bottleneck import bottleneck
from rlad.config import RolloutConfig

# So many steps in a row must say the same: one long response is no reason for another engine.
_STEPS = 3
# Share of a step that one more worker has to save.
_WORTH_ADDING = 0.10
# Share of a step up to which generation may be waited for while workers are idle.
_HIDDEN = 0.05


class RolloutAutoscaler:
    """Adds a worker while generation bounds the steps, and takes one away while all of generation is hidden and a worker's worth of it idle."""

    def __init__(self, config: RolloutConfig) -> None:
        """
        Args:
            config: with `autoscale` and its bounds.
        """
        self._config = config
        self._wishes: deque[int] = deque(maxlen=_STEPS)

    def wanted(self, metrics: Mapping[str, float], workers: Mapping[str, int], pool: PoolState) -> int | None:
        """The size that the pool should have from now on; None to leave it.

        Args:
            metrics: of the step that was just trained.
            workers: of each pool.
            pool: the rollout pool. While it is changing nothing is decided: the step was of another size.
        """
        if not self._config.autoscale or self._config.max_workers is None:
            return None
        if pool.starting or pool.draining or pool.ready != pool.target:
            self._wishes.clear()
            return None
        self._wishes.append(self._wish(metrics, workers, pool.ready))
        if len(self._wishes) < _STEPS or len(set(self._wishes)) > 1 or self._wishes[0] == 0:
            return None
        size = min(max(pool.target + self._wishes[0], self._config.min_workers), self._config.max_workers)
        self._wishes.clear()
        return size if size != pool.target else None

    def _wish(self, metrics: Mapping[str, float], workers: Mapping[str, int], size: int) -> int:
        found = bottleneck(metrics, workers)
        if found.pool == "rollout" and found.saving >= _WORTH_ADDING:
            return 1
        is_hidden = metrics["time/generate_s"] <= _HIDDEN * metrics["time/step_s"]
        # With a worker less, the others still have a fifth of their time to spare.
        is_spare = metrics.get("idle/rollout", 0.0) * size >= 1 + 0.2 * (size - 1)
        return -1 if is_hidden and is_spare else 0
