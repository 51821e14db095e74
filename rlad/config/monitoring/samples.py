"""Configuration of the sample log."""

from __future__ import annotations

from pydantic import Field

from rlad.config.base import ConfigModel, Fraction, PositiveInt


class SamplesConfig(ConfigModel):
    """The sample log: sampled groups with rewards and log-probabilities, as parquet files in the run directory."""

    share: Fraction = Field(
        0.1,
        description="Share of the groups that are logged, chosen at random by their uid; 1 logs all, 0 turns the log "
        "off.",
    )
    max_mib: PositiveInt = Field(
        512,
        description="Maximum size of the sample log in MiB. The oldest steps are deleted first, and one step takes at "
        "most a quarter; further groups of the step are left out.",
    )
