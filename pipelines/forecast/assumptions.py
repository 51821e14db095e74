"""Assumptions of a forecast: figures that neither data sheets nor the configuration give. `--assume` overrides each."""

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
    """Achieved shares of a device's peak figures, and figures that depend on the cluster.

    Attributes:
        memory_share: Achieved share of memory bandwidth in decoding and optimizer steps.
        forward_share: Achieved share of FLOP/s in an engine's forward pass.
        training_share: Achieved share of FLOP/s in the learner's forward and backward passes.
        link_share: Achieved share of link bandwidth.
        engine_ms: Engine overhead of one decoding step, in addition to the device's work.
        verdict_ms: Time of a verifier process for one response.
        network_gbit: Network bandwidth between nodes per device, in Gbit/s.
        gpus_per_node: GPUs of one node.
        store_gbit: Bandwidth of Ray's object transfers out of and into a node, in Gbit/s. They use TCP.
        delta_share: Size of a weight delta over that of the weights.
        delta_gb_s: Speed of encoding a weight delta, in GB of weights per second.
    """

    memory_share: float = 0.7
    forward_share: float = 0.5
    training_share: float = 0.4
    link_share: float = 0.7
    engine_ms: float = 2.0
    verdict_ms: float = 10.0
    network_gbit: float = 400.0
    gpus_per_node: float = 8.0
    store_gbit: float = 40.0
    delta_share: float = 0.05
    delta_gb_s: float = 8.0

    def sentence(self) -> str:
        """Return all assumptions as text."""
        return ", ".join(f"{field.name} {getattr(self, field.name):g}" for field in fields(self))


def assumptions_from(overrides: Sequence[str]) -> Assumptions:
    """Return the default assumptions with overrides of the form `name=value`.

    Raises:
        ConfigError: The name is unknown, or the value is not a number or out of range.
    """
    names = [field.name for field in fields(Assumptions)]
    changes = {}
    for text in overrides:
        name, _, value = text.partition("=")
        if name not in names:
            raise ConfigError(f"unknown assumption {name!r}; expected NAME=VALUE with one of {', '.join(names)}")
        try:
            changes[name] = float(value)
        except ValueError:
            raise ConfigError(f"assumption {name} must be a number; got {value!r}") from None
        if not _is_possible(name, changes[name]):
            raise ConfigError(
                f"assumption {name} is out of range; got {value}. Shares are above 0 and at most 1, "
                "milliseconds at least 0, and other values above 0"
            )
    return replace(Assumptions(), **changes)


def _is_possible(name: str, value: float) -> bool:
    if name.endswith("_share"):
        return 0 < value <= 1
    return 0 <= value < float("inf") if name.endswith("_ms") else 0 < value < float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Prompts and responses of one step.

    Attributes:
        groups: Number of prompts.
        prompt_tokens: Tokens of each prompt.
        lengths: float64 [R], tokens of each response, ascending. They are quantiles of the distribution, so a forecast
            is deterministic.
    """

    groups: int
    prompt_tokens: int
    lengths: Array

    @property
    def group_size(self) -> float:
        """Responses per group."""
        return len(self.lengths) / self.groups

    @property
    def response_tokens(self) -> float:
        """Tokens of all responses."""
        return float(self.lengths.sum())

    @property
    def sequences(self) -> Array:
        """Tokens of each response with its prompt: float64 [R]."""
        return self.lengths + self.prompt_tokens

    @property
    def mean_context(self) -> float:
        """Mean number of tokens in front of a decoded token. Long responses weigh more: they decode for longer."""
        return self.prompt_tokens + float(np.square(self.lengths).sum()) / (2 * self.response_tokens)

    @property
    def longest_of_groups(self) -> Array:
        """Tokens of each group's longest response, ascending: float64 [groups].

        Quantile q of the longest of G responses is quantile q^(1/G) of all responses. The last entry is the maximum.
        """
        places = ((np.arange(self.groups) + 0.5) / self.groups) ** (1 / self.group_size) * len(self.lengths)
        longest: Array = self.lengths[np.minimum(places.astype(int), len(self.lengths) - 1)]
        longest[-1] = self.lengths[-1]
        return longest


def work_of_step(lengths: Lengths, *, groups: int, prompt_tokens: int) -> Work:
    """Return the work of a step with response lengths of this distribution."""
    count = groups * lengths.group_size
    sigma = lengths.sigma
    quantiles = np.array(
        [lengths.median * np.exp(sigma * NormalDist().inv_cdf((number + 0.5) / count)) for number in range(count)]
    )
    return Work(groups=groups, prompt_tokens=prompt_tokens, lengths=np.clip(np.rint(quantiles), 1, lengths.longest))


def assumed_lengths(rollout: RolloutConfig, *, median: float | None, tail: float, seed: int = 0) -> Lengths:
    """Return the assumed distribution of response lengths.

    Args:
        rollout: Rollout settings of the run. `max_response_tokens` is the maximum length.
        median: Median length, in tokens; None for a quarter of the maximum.
        tail: Ratio of the 99th percentile to the median.
        seed: Seed of the simulator's lengths.

    Raises:
        ConfigError: The median is above the maximum, or the tail is below 1.
    """
    budget = rollout.max_response_tokens
    found = budget / 4 if median is None else median
    if not 1 <= found <= budget:
        raise ConfigError(f"--median-tokens must be from 1 to rollout.max_response_tokens ({budget}); got {found:g}")
    if not 1 <= tail < float("inf"):
        raise ConfigError(f"--tail (99th percentile of the lengths / median) must be at least 1; got {tail:g}")
    return Lengths(median=found, p99_over_median=tail, longest=budget, group_size=rollout.group_size, seed=seed)
