"""Forecast of a run for `rlad plan --device`: table, cost and advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Group

from pipelines.forecast.pools import PoolCosts
from pipelines.forecast.sizes import Split, splits
from pipelines.forecast.step import LONGEST_RESPONSE, Sizes, StepTime, cost_of_step, fixed_devices, sizes_of, step_time
from pipelines.run.tables import Row, fitted_table
from pipelines.simulation.workload import Lengths
from rlad.config import RunConfig

# Smaller speedups are within the error of the forecast.
_MIN_SPEEDUP = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Forecast of a step with the configured pool sizes, and the fastest split of the same devices.

    Attributes:
        costs: Costs of the pools.
        lengths: Distribution of response lengths.
        sizes: Configured pool sizes.
        on_policy: Step at staleness 0.
        ahead: Steps that work ahead, by staleness: 1, 2 and the configured one.
        fastest: Fastest split at the configured staleness; None if no split fits in memory.
    """

    costs: PoolCosts
    lengths: Lengths
    sizes: Sizes
    on_policy: StepTime
    ahead: Mapping[int, StepTime]
    fastest: Split | None

    @property
    def config(self) -> RunConfig:
        """Configuration of the run."""
        return self.costs.config

    @property
    def devices(self) -> float:
        """Devices of the run, with those of reward models."""
        return sum(self.sizes.devices(self.config).values()) + fixed_devices(self.config)

    @property
    def configured(self) -> StepTime:
        """Step at the configured staleness."""
        staleness = self.config.training.max_staleness
        return self.ahead[staleness] if staleness else self.on_policy

    def table(self) -> Group:
        """Return the busy seconds of each pool and the duration of the step, on-policy and for each staleness."""
        steps = [self.on_policy, *self.ahead.values()]
        device, devices = self.costs.machine.device, self.sizes.devices(self.config)
        workers = {
            "rollout": self.sizes.rollout,
            **self.sizes.scorers,
            "verifier": self.config.verifier_pool.workers,
            "learner": self.sizes.learner,
        }
        pools = list(self.on_policy.busy)
        rows = [
            Row(
                name=pool,
                cells=[
                    str(workers[pool]),
                    f"{devices.get(pool, 0):g}",
                    *(f"{step.busy[pool]:.1f}" for step in steps),
                ],
                ends_section=pool == pools[-1],
            )
            for pool in pools
        ]
        seconds = [f"{step.seconds:.1f}" for step in steps]
        rows.append(Row(name="step", cells=["", f"{self.devices:g}", *seconds], style="bold"))
        rows.append(Row(name="bounded by", cells=["", "", *(_broken(step.bound_by) for step in steps)]))
        headers = ["pool", "workers", "GPUs", "on-policy (s)", *(f"{number} ahead (s)" for number in self.ahead)]
        title = f"Forecast of a step on {self.devices:g} {device.title}: busy time of each pool"
        return fitted_table(title, headers, rows)

    def sentences(self, *, price_per_hour: float | None) -> Iterator[str]:
        """Yield concurrency, cost, advice and assumptions, one sentence each."""
        work, decoding = self.costs.work, self.configured.decoding
        yield (
            f"{work.response_tokens / 1e3:,.0f} k response tokens per step; a rollout worker has cache for "
            f"{decoding.slots} responses and decodes {decoding.sequences:.0f} at a time, "
            f"a token in {decoding.token_s * 1e3:.1f} ms"
        )
        yield (
            f"on-policy, sampling does not hide {self.on_policy.exposed_s:.1f} s of a step, "
            f"of which the weight update takes {self.costs.weights_s(self.devices):.1f} s"
        )
        if price_per_hour is not None:
            steps = self.config.training.steps
            cost = cost_of_step(self.configured.seconds, self.devices, price_per_hour=price_per_hour)
            yield f"cost: {cost:,.2f} per step, {cost * steps:,.0f} for {steps} steps, without evaluations"
        yield from self._advice()
        yield (
            f"assumptions: responses of {self.lengths.sentence()}; prompts of {work.prompt_tokens} tokens; "
            f"{self.costs.machine.assumptions.sentence()}"
        )
        if self.config.shared_teachers:
            yield f"not included: {', '.join(self.config.shared_teachers)}, which this run does not start"
        if fixed_devices(self.config):
            yield "not included: the time of reward models (their GPUs are included in the price)"

    def _advice(self) -> Iterator[str]:
        if self.fastest is None:
            yield "no split of these GPUs has the memory for all pools"
            return
        before, after = self.configured.seconds, self.fastest.time.seconds
        if before / after - 1 < _MIN_SPEEDUP:
            yield f"no other split of these GPUs is more than {_MIN_SPEEDUP:.0%} faster"
            return
        settings = " ".join(self.fastest.sizes.overrides())
        bound = self.fastest.time.bound_by
        yield (
            f"faster on the same GPUs: {settings}: {after:.1f} s per step instead of {before:.1f} s, "
            f"bounded by {_with_article(bound)}"
        )
        idle = self.devices - fixed_devices(self.config) - sum(self.fastest.sizes.devices(self.config).values())
        if idle:
            yield f"this split leaves {idle:g} GPUs unused"


def forecast(costs: PoolCosts, lengths: Lengths) -> Forecast:
    """Return the forecast of a run with its configured pool sizes."""
    config, sizes = costs.config, sizes_of(costs.config)
    ranked = splits(costs, sum(sizes.devices(config).values()), staleness=config.training.max_staleness)
    staleness = sorted({1, 2, config.training.max_staleness} - {0})
    return Forecast(
        costs=costs,
        lengths=lengths,
        sizes=sizes,
        on_policy=step_time(costs, sizes, staleness=0),
        ahead={number: step_time(costs, sizes, staleness=number) for number in staleness},
        fastest=ranked[0] if ranked else None,
    )


def _broken(bound_by: str) -> str:
    return bound_by.replace(" ", "\n")


def _with_article(bound_by: str) -> str:
    return f"the {bound_by}" if bound_by == LONGEST_RESPONSE else bound_by
