"""Coefficient of the entropy bonus: constant, or adapted towards a target entropy (Skywork-OR1, arXiv:2505.22312)."""

from __future__ import annotations

from rlad.config.objectives import EntropyBonus


class EntropyController:
    """Entropy coefficient during a run. All ranks observe the same entropies and hold the same coefficient."""

    def __init__(self, bonus: EntropyBonus) -> None:
        self._bonus = bonus
        self.level = bonus.coefficient
        """Adaptive coefficient, regardless of the last entropy. Saved in checkpoints."""
        self._last_entropy: float | None = None

    @property
    def coefficient(self) -> float:
        """Coefficient for the next update: `level`, or 0 while the last entropy is above the target."""
        target = self._bonus.target
        if target is not None and self._last_entropy is not None and self._last_entropy > target:
            return 0.0
        return self.level

    def observe(self, entropy: float) -> None:
        """Adapt the coefficient after an applied update.

        Args:
            entropy: Mean entropy of the trained tokens, in nats per token.
        """
        if self._bonus.target is None:
            return
        self._last_entropy = entropy
        change = self._bonus.delta if entropy < self._bonus.target else -self._bonus.delta
        self.level = min(self._bonus.cap, max(0.0, self.level + change))

    def state(self) -> tuple[float, float | None]:
        """Return the state that a checkpoint saves: level and last entropy."""
        return self.level, self._last_entropy

    def restore(self, state: tuple[float, float | None]) -> None:
        """Restore a state that `state` returned."""
        self.level, self._last_entropy = state
