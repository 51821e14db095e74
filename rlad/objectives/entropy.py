"""The coefficient of the entropy bonus: constant, or steered towards a target entropy."""

from __future__ import annotations

from rlad.config.objectives import EntropyBonus


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
