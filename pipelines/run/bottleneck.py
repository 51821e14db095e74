"""The pool that bounds a step, and the time that one more of its workers would save."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlad.config import RunConfig

# Smallest saving, as a share of a step, for which one more worker is suggested.
_WORTH_SAYING = 0.05
_WORKERS = {
    "rollout": "rollout worker",
    "teacher": "teacher replica",
    "verifier": "verifier",
    "learner": "learner rank",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """The pool that bounds a step.

    Attributes:
        pool: The pool that the step waits for most, or `weights` for the weight update.
        share: Share of the step spent waiting for this pool alone.
        saving: Estimated share of the step that one more worker would save, if a pool's work is divided evenly.
    """

    pool: str
    share: float
    saving: float

    def sentence(self) -> str:
        """Describe the bottleneck in one sentence."""
        if self.pool == "weights":
            return f"the weight update bounds the step ({self.share:.0%})"
        worker = _WORKERS[self.pool]
        advice = f": one more {worker} would save about {self.saving:.0%}" if self.saving >= _WORTH_SAYING else ""
        return f"{self.pool} bounds the step ({self.share:.0%}){advice}"


def pool_sizes(config: RunConfig, now: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the workers of each stage.

    Args:
        config: Gives the sizes of pools that `now` does not name.
        now: Present sizes by pool. Shared teachers are not counted, since they serve other runs too.
    """
    now = now or {}
    teachers = [now.get(pool, model.replicas) for pool, model in config.scoring_pools.items() if pool != "reference"]
    return {
        "rollout": now.get("rollout", config.rollout.workers),
        "verifier": now.get("verifier", config.verifier_pool.workers) * config.verifier_pool.processes_per_worker,
        "learner": config.learner.ranks,
        **({"teacher": sum(teachers)} if teachers else {}),
    }


def bottleneck(metrics: Mapping[str, float], workers: Mapping[str, int]) -> Bottleneck:
    """Find the bottleneck of one step.

    Args:
        metrics: Metrics of the step; `time/*_s` give the time that each stage adds to it.
        workers: Number of workers of each pool.
    """
    step_s = max(metrics["time/step_s"], 1e-9)
    teacher_s = metrics.get("time/teacher_s", 0.0)
    waited = {
        "rollout": metrics["time/generate_s"],
        "teacher": teacher_s,
        "verifier": metrics["time/score_s"] - teacher_s,
        "learner": metrics["time/learn_s"],
        "weights": metrics["time/weights_s"],
    }
    pool = max(waited, key=waited.__getitem__)
    share = min(1.0, waited[pool] / step_s)
    return Bottleneck(pool=pool, share=share, saving=share / (workers[pool] + 1) if pool in workers else 0.0)


def bottleneck_of_run(steps: Sequence[Mapping[str, Any]], workers: Mapping[str, int]) -> Bottleneck | None:
    """Find the bottleneck of a run, from the median of each metric over its steps. None before the first step."""
    if not steps:
        return None
    names = {name for name in steps[-1] if name.startswith("time/")}
    return bottleneck({name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}, workers)
