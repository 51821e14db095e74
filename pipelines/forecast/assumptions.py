"""What a forecast has to assume because no data sheet and no configuration says it. Every figure can be given instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pipelines.simulation.workload import Lengths
from rlad.config import RolloutConfig
from rlad.errors import ConfigError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """How much of a device's figures is reached, and what has no figure.

    Attributes:
        memory_share: of the memory bandwidth, while tokens are decoded and the optimizer steps.
        forward_share: of the FLOP/s, in a forward pass of an engine.
        training_share: of the FLOP/s, in the learner's forward and backward passes.
        link_share: of a link's bandwidth.
        engine_ms: of an engine for one step of decoding, beside the device's work.
        verdict_ms: of a verifier process for one response.
        network_gbit: between machines, for each of their devices.
        gpus_per_node: of one machine.
    """

    memory_share: float = 0.7
    forward_share: float = 0.5
    training_share: float = 0.4
    link_share: float = 0.7
    engine_ms: float = 2.0
    verdict_ms: float = 10.0
    network_gbit: float = 400.0
    gpus_per_node: float = 8.0

    def sentence(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name):g}" for field in fields(self))


def assumptions_from(given: Sequence[str]) -> Assumptions:
    """The usual ones but for those given, each as `name=value`.

    Raises:
        ConfigError: an unknown name, or a value that it cannot have.
    """
    names = [field.name for field in fields(Assumptions)]
    changes = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in names:
            raise ConfigError(f"no assumption {name!r}: there are {', '.join(names)}, each given as name=value")
        try:
            changes[name] = float(value)
        except ValueError:
            raise ConfigError(f"assumption {name} takes a number, got {value!r}") from None
        if not _is_possible(name, changes[name]):
            raise ConfigError(
                f"assumption {name} cannot be {value}: shares are above 0 and at most 1, milliseconds at least 0, all else above 0"
            )
    return replace(Assumptions(), **changes)


def _is_possible(name: str, value: float) -> bool:
    if name.endswith("_share"):
        return 0 < value <= 1
    return 0 <= value < float("inf") if name.endswith("_ms") else 0 < value < float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step has to sample, score and train on.

    Attributes:
        groups: prompts of the step.
        prompt_tokens: of each.
        lengths: float64 [R], tokens of all responses, ascending: the quantiles of their distribution, so that nothing is drawn.
    """

    groups: int
    prompt_tokens: int
    lengths: Array

    @property
    def group_size(self) -> float:
        return len(self.lengths) / self.groups

    @property
    def response_tokens(self) -> float:
        return float(self.lengths.sum())

    @property
    def sequences(self) -> Array:
        """Tokens of every prompt with its response."""
        return self.lengths + self.prompt_tokens

    @property
    def mean_context(self) -> float:
        """Tokens before the one that is decoded, over all that are: a long response is in there for longer."""
        return self.prompt_tokens + float(np.square(self.lengths).sum()) / (2 * self.response_tokens)

    @property
    def longest_of_groups(self) -> Array:
        """Tokens of every group's longest response, ascending: with G responses, quantile q of them is quantile q^(1/G) of all; the last is the longest."""
        places = ((np.arange(self.groups) + 0.5) / self.groups) ** (1 / self.group_size) * len(self.lengths)
        longest: Array = self.lengths[np.minimum(places.astype(int), len(self.lengths) - 1)]
        longest[-1] = self.lengths[-1]
        return longest


def work_of_step(lengths: Lengths, *, groups: int, prompt_tokens: int) -> Work:
    """The work of a step whose responses are spread as `lengths` are."""
    count = groups * lengths.group_size
    sigma = lengths.sigma
    quantiles = np.array(
        [lengths.median * np.exp(sigma * NormalDist().inv_cdf((number + 0.5) / count)) for number in range(count)]
    )
    return Work(groups=groups, prompt_tokens=prompt_tokens, lengths=np.clip(np.rint(quantiles), 1, lengths.longest))


def assumed_lengths(rollout: RolloutConfig, *, median: float | None, tail: float, seed: int = 0) -> Lengths:
    """Response lengths of a run: a median of a quarter of the budget where none is given.

    Args:
        tail: 99th percentile over the median.

    Raises:
        ConfigError: a median above the budget, or a tail below 1.
    """
    budget = rollout.max_response_tokens
    found = budget / 4 if median is None else median
    if not 1 <= found <= budget:
        raise ConfigError(f"the median length is from 1 to rollout.max_response_tokens {budget}, got {found:g}")
    if not 1 <= tail < float("inf"):
        raise ConfigError(
            f"the tail, the 99th percentile of the lengths over their median, is at least 1, got {tail:g}"
        )
    return Lengths(median=found, p99_over_median=tail, longest=budget, group_size=rollout.group_size, seed=seed)
