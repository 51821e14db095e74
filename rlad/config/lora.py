"""Settings of a student that is trained through low-rank adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlad.config.base import ConfigModel, PositiveInt

_EMBEDDINGS = ("lm_head", "embed_tokens")


class LoraConfig(ConfigModel):
    """LoRA (arXiv:2106.09685): the student's weights are frozen, and each adapted layer is trained as W + alpha / rank * B A. Engines, evaluation and
    export get these sums, as if the whole student were trained. There is no dropout: the samplers have none, so the likelihood ratio would be wrong.
    """

    rank: PositiveInt = Field(32, description="Rows of A and columns of B.")
    alpha: PositiveInt = Field(
        32,
        description="The adapters are scaled by alpha / rank. The default of `learner.optimizer.lr` is for all weights: adapters want about ten times that.",
    )
    target_modules: Literal["all-linear"] | list[Annotated[str, Field(min_length=1)]] = Field(
        "all-linear",
        description="Names of linear layers, or the ends of them, for example `[q_proj, v_proj]`; or all but the output layer.",
    )

    @field_validator("target_modules")
    @classmethod
    def _are_layers_within(cls, target_modules: str | list[str]) -> str | list[str]:
        if isinstance(target_modules, str):
            return target_modules
        if not target_modules or "all-linear" in target_modules:
            raise ValueError(
                "give the names of linear layers, `[q_proj, v_proj]`, or `all-linear` alone, without brackets"
            )
        if embeddings := [name for name in target_modules if name.split(".")[-1] in _EMBEDDINGS]:
            raise ValueError(
                f"{embeddings[0]} cannot be adapted: adapters are for linear layers between the embedding and the output layer"
            )
        return target_modules

    def is_target(self, layer: str) -> bool:
        """Whether the linear layer of this name, which is not the output layer, is adapted."""
        return self.target_modules == "all-linear" or any(_ends(layer, target) for target in self.target_modules)

    def targets_without(self, layers: list[str]) -> list[str]:
        """The targets that are none of a model's linear layers."""
        return (
            []
            if self.target_modules == "all-linear"
            else [name for name in self.target_modules if not any(_ends(layer, name) for layer in layers)]
        )


def _ends(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")
