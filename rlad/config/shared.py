"""Sections that runs and evaluations have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlad.config.base import ConfigModel as ConfigModel
from rlad.config.base import PositiveInt, Seconds


class ModelConfig(ConfigModel):
    path: str = Field(
        description="Hugging Face model directory, or `starter:RECIPE/ROLE` for a model that `rlad pretrain` makes."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Precision of the weights in the engines (the learner keeps float32 masters)."
    )


class ClusterConfig(ConfigModel):
    address: str | None = Field(
        None, description="Ray address, or `auto`; none starts a local one that ends with the run."
    )
    num_cpus: PositiveInt | None = Field(
        None, description="CPUs a local cluster claims; default: those of the machine."
    )
    start_timeout_s: Seconds = Field(300, description="Deadline for every pool to be up.")
    pool_labels: bool = Field(
        False,
        description="Place every pool on the nodes whose Ray label `rlad.io/pool` is its name (`rlad plan` prints them), the broker on those of `head`. "
        "What `rlad deploy render` writes labels its nodes and turns this on.",
    )
