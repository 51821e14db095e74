"""Reward-model verifier: the reward of a response is the score of a sequence-classification model.

Groups of its task are verified by a separate pool.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rlad.contracts import Array
from rlad.errors import ConfigError
from rlad.verifiers.verdict import Verifier


class RewardModelVerifierConfig(BaseModel):
    """Settings of a reward model.

    It is a Hugging Face sequence-classification model with one output and the tokenizer of the student.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["reward_model"]
    path: str = Field(
        description="Model reference, as `student.path`. The model reads prompt and response as token ids of the "
        "student."
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    transform: Literal["none", "sigmoid"] = Field(
        "none", description="Transform of the model's output: none, or the logistic function."
    )
    scale: float = Field(
        1.0, allow_inf_nan=False, description="Factor of the transformed score; the product is the reward."
    )
    correct_from: float = Field(
        0.5, description="Minimum reward of a response with outcome correct. Truncated responses are never correct."
    )
    workers: int = Field(1, ge=1)
    token_budget: int = Field(
        8192, ge=1, description="Maximum tokens of one forward pass. A longer sequence gets a pass of its own."
    )
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1, description="Compute threads of a worker on the CPU.")
    timeout_s: float = Field(
        300.0,
        gt=0,
        description="Deadline for scoring one group, in seconds. A late worker is replaced and the group scored again.",
    )

    def build(self) -> Verifier:
        """Raise an error: a reward model is served by its own pool.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"the reward model {self.path} cannot run in a verifier process; "
            "it is served by `actors.verifier.reward_pool.RewardPool`"
        )

    def rewards(self, scores: Array) -> Array:
        """Return the rewards of model scores, float32, in the shape of `scores`."""
        values = scores.astype(np.float64)
        if self.transform == "sigmoid":
            values = np.exp(-np.logaddexp(0.0, -values))
        return np.asarray(self.scale * values, np.float32)
