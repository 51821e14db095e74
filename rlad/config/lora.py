"""Configuration of LoRA adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlad.config.base import ConfigModel, PositiveInt

_EMBEDDINGS = ("lm_head", "embed_tokens")


class LoraConfig(ConfigModel):
    """LoRA adapters (arXiv:2106.09685).

    The student's weights W are frozen, and each adapted layer computes with W + alpha / rank * B A. Engines, evaluation
    and export receive the merged weights. There is no dropout: the sampling engines apply none, so it would make the
    likelihood ratio wrong.
    """

    rank: PositiveInt = Field(32, description="Rank of the adapters: rows of A and columns of B.")
    alpha: PositiveInt = Field(
        32,
        description="Numerator of the adapters' scale, alpha / rank. Adapters need a learning rate about ten times the "
        "default of `learner.optimizer.lr`, which suits full training.",
    )
    target_modules: Literal["all-linear"] | list[Annotated[str, Field(min_length=1)]] = Field(
        "all-linear",
        description="Linear layers to adapt, by name or name suffix, for example `[q_proj, v_proj]`. `all-linear` "
        "adapts all of them except the output layer.",
    )

    @field_validator("target_modules")
    @classmethod
    def _targets_are_inner_layers(cls, target_modules: str | list[str]) -> str | list[str]:
        if isinstance(target_modules, str):
            return target_modules
        if not target_modules or "all-linear" in target_modules:
            raise ValueError(
                "expected a list of linear layer names such as [q_proj, v_proj], or `all-linear` without brackets"
            )
        if embeddings := [name for name in target_modules if name.split(".")[-1] in _EMBEDDINGS]:
            raise ValueError(
                f"{embeddings[0]} cannot be adapted: adapters support only linear layers between the embedding and the "
                "output layer. Remove it from the list"
            )
        return target_modules

    def is_target(self, layer: str) -> bool:
        """Return whether a linear layer is adapted. `layer` must not be the output layer."""
        return self.target_modules == "all-linear" or any(_ends(layer, target) for target in self.target_modules)

    def targets_without(self, layers: list[str]) -> list[str]:
        """Return the configured targets that match none of a model's linear layers."""
        if self.target_modules == "all-linear":
            return []
        return [name for name in self.target_modules if not any(_ends(layer, name) for layer in layers)]


def _ends(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")
