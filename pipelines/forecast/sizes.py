"""Search for the pool sizes with the shortest step on a number of devices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.forecast.pools import PoolCosts
from pipelines.forecast.step import Sizes, StepTime, combined

# Maximum number of splits to evaluate. With thousands of devices, pool sizes are tried in larger increments.
_MOST_SPLITS = 20_000
# Splits whose step takes longer than this multiple of the best are not shown.
_MAX_SLOWDOWN = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Division of the devices among the pools, with its step time."""

    sizes: Sizes
    time: StepTime


def splits(costs: PoolCosts, devices: float, *, staleness: int) -> list[Split]:
    """Return the splits of the devices that fit in memory, fastest first.

    Only the number of workers changes, not the devices of a worker. Each pool has at least one worker, and the learner
    gets the remaining devices, as far as they form whole sequence groups.
    """
    config, pools = costs.config, costs.config.scoring_pools
    by_unit = {
        "rollout": config.rollout.gpus_per_worker,
        **{pool: model.gpus_per_replica for pool, model in pools.items()},
    }
    rollouts = {
        n: costs.on_policy(n) if staleness == 0 else costs.ahead(n, staleness=staleness)
        for n in _counts(by_unit, "rollout", devices)
    }
    scorings = {pool: {n: costs.scoring(pool, n) for n in _counts(by_unit, pool, devices)} for pool in pools}
    weights_s = costs.weights_s(devices)
    found = []
    for workers, *replicas in itertools.product(rollouts, *scorings.values()):
        scorers = dict(zip(pools, replicas, strict=True))
        used = workers * by_unit["rollout"] + sum(number * by_unit[pool] for pool, number in scorers.items())
        ranks = math.floor((devices - used) / config.learner.gpus_per_rank + 1e-9)
        ranks -= ranks % config.learner.sequence_parallel
        if ranks < 1 or not costs.fits_learner(ranks):
            continue
        scoring = {pool: scorings[pool][number] for pool, number in scorers.items()}
        time = combined(
            costs, rollouts[workers], scoring, costs.learning(ranks), staleness=staleness, weights_s=weights_s
        )
        found.append(Split(sizes=Sizes(rollout=workers, scorers=scorers, learner=ranks), time=time))
    return sorted(found, key=lambda split: split.time.seconds)


def spread_of(ranked: list[Split], count: int) -> list[Split]:
    """Select up to `count` splits: the fastest, and the fastest for other sizes of the rollout pool."""
    best: dict[int, Split] = {}
    for split in ranked:
        if split.time.seconds <= _MAX_SLOWDOWN * ranked[0].time.seconds:
            best.setdefault(split.sizes.rollout, split)
    others = sorted((split for split in best.values() if split is not ranked[0]), key=lambda split: split.sizes.rollout)
    places = np.unique(np.linspace(0, len(others) - 1, min(count - 1, len(others))).round().astype(int))
    return sorted([ranked[0], *(others[place] for place in places)], key=lambda split: split.sizes.rollout)


def _counts(by_unit: dict[str, float], pool: str, devices: float) -> Iterator[int]:
    """Yield the numbers of workers to try for a pool: all, or evenly spaced if there would be too many splits."""
    others = sum(by_unit.values()) - by_unit[pool]
    most = math.floor((devices - others) / by_unit[pool] + 1e-9)
    each = max(2, int(_MOST_SPLITS ** (1 / len(by_unit))))
    if most <= each:
        yield from range(1, most + 1)
    else:
        yield from sorted({round(1 + number * (most - 1) / (each - 1)) for number in range(each)})
