"""What `rlad plan --device` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from pipelines.forecast.pools import PoolCosts
from pipelines.forecast.sizes import Split, splits
from pipelines.forecast.step import LONGEST_RESPONSE, Sizes, StepTime, cost_of_step, fixed_devices, sizes_of, step_time
from pipelines.simulation.workload import Lengths
from rlad.config import RunConfig

# A step that is faster by less is as fast, by figures as rough as these.
_WORTH_SAYING = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A run's step as it is configured, both ways, and how other pool sizes would do.

    Attributes:
        staleness: of the step that works ahead: the configured one, or 1.
        fastest: the best split of as many devices for the way that is configured; None where no split has the memory.
    """

    costs: PoolCosts
    lengths: Lengths
    sizes: Sizes
    on_policy: StepTime
    ahead: StepTime
    staleness: int
    fastest: Split | None

    @property
    def config(self) -> RunConfig:
        return self.costs.config

    @property
    def devices(self) -> float:
        return sum(self.sizes.devices(self.config).values()) + fixed_devices(self.config)

    @property
    def configured(self) -> StepTime:
        """Of the two, the one that the run is configured for."""
        return self.ahead if self.config.training.max_staleness else self.on_policy

    def table(self) -> Table:
        device, sizes = self.costs.machine.device, self.sizes.devices(self.config)
        table = Table(title=f"A step on {self.devices:g} {device.title}, predicted", title_justify="left")
        for column in ("pool", "workers", "GPUs", "busy s, on-policy", f"busy s, {self.staleness} ahead"):
            table.add_column(column, justify="left" if column == "pool" else "right")
        workers = {
            "rollout": self.sizes.rollout,
            **self.sizes.scorers,
            "verifier": self.config.verifier_pool.workers,
            "learner": self.sizes.learner,
        }
        for pool, busy_s in self.on_policy.busy.items():
            table.add_row(
                pool, str(workers[pool]), f"{sizes.get(pool, 0):g}", f"{busy_s:.1f}", f"{self.ahead.busy[pool]:.1f}"
            )
        table.add_section()
        table.add_row(
            "[bold]step",
            "",
            f"{self.devices:g}",
            f"[bold]{self.on_policy.seconds:.1f}",
            f"[bold]{self.ahead.seconds:.1f}",
        )
        table.add_row("bounded by", "", "", self.on_policy.bound_by, self.ahead.bound_by)
        return table

    def sentences(self, *, price_per_hour: float | None) -> Iterator[str]:
        """What the table does not say, with all that was assumed."""
        work, decoding = self.costs.work, self.configured.decoding
        yield (
            f"{work.response_tokens / 1e3:,.0f} k response tokens a step; a rollout worker has memory for {decoding.slots} responses at once, and "
            f"decodes {decoding.sequences:.0f}, a token in {decoding.token_s * 1e3:.1f} ms"
        )
        yield (
            f"on-policy, {self.on_policy.exposed_s:.1f} s are not hidden behind sampling, {self.costs.weights_s(self.devices):.1f} s of them the weights"
        )
        if price_per_hour is not None:
            cost = cost_of_step(self.configured.seconds, self.devices, price_per_hour=price_per_hour)
            yield f"a step costs {cost:,.2f}, the run's {self.config.training.steps} steps {cost * self.config.training.steps:,.0f}, evaluations not counted"
        yield from self._advice()
        yield f"assumed: responses of {self.lengths.sentence()}; prompts of {work.prompt_tokens}; {self.costs.machine.assumptions.sentence()}"
        if self.config.shared_teachers:
            yield f"not in it: {', '.join(self.config.shared_teachers)}, which this run does not start"
        if fixed_devices(self.config):
            yield "not in it: the time of reward models; their GPUs are in the price"

    def _advice(self) -> Iterator[str]:
        if self.fastest is None:
            yield "no division of these GPUs has the memory for every pool"
            return
        before, after = self.configured.seconds, self.fastest.time.seconds
        if before / after - 1 < _WORTH_SAYING:
            yield "no other division of these GPUs would be faster by more than 2%"
            return
        settings = " ".join(self.fastest.sizes.overrides())
        bound = self.fastest.time.bound_by
        yield f"faster on the same GPUs: {settings}: {after:.1f} s a step instead of {before:.1f}, bounded by {_named(bound)}"
        idle = self.devices - fixed_devices(self.config) - sum(self.fastest.sizes.devices(self.config).values())
        if idle:
            yield f"{idle:g} GPUs would be left over"


def forecast(costs: PoolCosts, lengths: Lengths) -> Forecast:
    """Of the sizes that are configured."""
    config, sizes = costs.config, sizes_of(costs.config)
    ranked = splits(costs, sum(sizes.devices(config).values()), staleness=config.training.max_staleness)
    staleness = max(1, config.training.max_staleness)
    return Forecast(
        costs=costs,
        lengths=lengths,
        sizes=sizes,
        on_policy=step_time(costs, sizes, staleness=0),
        ahead=step_time(costs, sizes, staleness=staleness),
        staleness=staleness,
        fastest=ranked[0] if ranked else None,
    )


def _named(bound_by: str) -> str:
    return f"the {bound_by}" if bound_by == LONGEST_RESPONSE else bound_by
