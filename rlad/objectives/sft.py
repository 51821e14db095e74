"""Supervised fine-tuning objective, for offline distillation."""

from __future__ import annotations

from rlad.config.objectives import SftConfig
from rlad.objectives.metrics import mean_over
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.tokens import Tokens


class SftObjective(Objective[SftConfig]):
    """Supervised fine-tuning on existing responses, such as traces of a teacher that a verifier accepted.

    ```
    loss = -log pi
    ```

    The loss is per token. Neither teacher log-probabilities nor rewards enter it.
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the negative log-likelihood of each token."""
        losses = -tokens.policy_logprobs
        return TokenLosses(
            losses=losses, means={"objective/negative_log_likelihood": mean_over(losses.detach(), tokens.is_valid)}
        )
