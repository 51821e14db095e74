"""A reward model: the reward of a response is the score of a sequence-classification model. Groups of its task go to a pool of its own."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rlad.contracts import Array
from rlad.errors import ConfigError
from rlad.verifiers.verdict import Verifier


class RewardModelVerifierConfig(BaseModel):
    """Settings of a reward model: a Hugging Face sequence-classification model with one output, and the tokenizer of the student."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["reward_model"]
    path: str = Field(
        description="Hugging Face model directory. The model reads prompt and response as the student's token ids."
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    transform: Literal["none", "sigmoid"] = Field(
        "none", description="What becomes of the model's output: nothing, or its logistic function."
    )
    scale: float = Field(
        1.0, allow_inf_nan=False, description="Factor of the (transformed) score; the product is the reward."
    )
    correct_from: float = Field(
        0.5, description="Reward from which a response counts as correct in the outcomes. A truncated one never does."
    )
    workers: int = Field(1, ge=1)
    token_budget: int = Field(8192, ge=1, description="Tokens of one forward pass; a longer sequence goes alone.")
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1, description="Compute threads of a worker on CPU.")
    timeout_s: float = Field(
        300.0,
        gt=0,
        description="Deadline of scoring one group; past it the worker is replaced and the group is scored again.",
    )

    def build(self) -> Verifier:
        """
        Raises:
            ConfigError: always: a reward model has a pool of its own and no verifier that a judge could run.
        """
        raise ConfigError(
            f"the reward model {self.path} is served by a pool of its own (`actors.verifier.reward_pool.RewardPool`) and cannot run in a judge"
        )

    def rewards(self, scores: Array) -> Array:
        """float32 rewards of the model's scores."""
        values = scores.astype(np.float64)
        if self.transform == "sigmoid":
            values = np.exp(-np.logaddexp(0.0, -values))
        return np.asarray(self.scale * values, np.float32)
