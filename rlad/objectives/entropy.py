"""The coefficient of the entropy bonus: constant, or steered towards a target entropy."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class EntropyBonus(BaseModel):
    """Adds `coefficient * entropy` to what is maximised. With `target` the coefficient is adaptive (Skywork-OR1, arXiv:2505.22312, section 4):
    after each update it rises by `delta` where the mean entropy of the trained tokens was below the target and falls by as much, not below 0,
    where it was not; and it counts only while the entropy is at or below the target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    coefficient: Annotated[float, Field(ge=0, description="Of the mean entropy of the trained tokens, in nats; with `target`, where it starts.")] = (
        0.0
    )
    target: Annotated[float | None, Field(gt=0, description="Entropy, in nats a token, below which the bonus grows; none keeps it constant.")] = None
    delta: Annotated[float, Field(gt=0, description="How much one update changes an adaptive coefficient.")] = 0.005

    @property
    def is_on(self) -> bool:
        return self.coefficient > 0 or self.target is not None


class EntropyController:
    """The coefficient over the course of a run. All ranks feed it the same entropies, so all have the same."""

    def __init__(self, bonus: EntropyBonus) -> None:
        self._bonus = bonus
        self.level = bonus.coefficient
        """c: what rises and falls. A checkpoint keeps it."""
        self._last_entropy: float | None = None

    @property
    def coefficient(self) -> float:
        """To use in the next update."""
        target = self._bonus.target
        if target is not None and self._last_entropy is not None and self._last_entropy > target:
            return 0.0
        return self.level

    def observe(self, entropy: float) -> None:
        """Tell it the mean entropy, in nats a token, of an update that was applied."""
        if self._bonus.target is None:
            return
        self._last_entropy = entropy
        change = self._bonus.delta if entropy < self._bonus.target else -self._bonus.delta
        self.level = max(0.0, self.level + change)

    def state(self) -> tuple[float, float | None]:
        return self.level, self._last_entropy

    def restore(self, state: tuple[float, float | None]) -> None:
        self.level, self._last_entropy = state
