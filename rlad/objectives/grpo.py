"""GRPO objective."""

from __future__ import annotations

from rlad.config.objectives import GrpoConfig
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import surrogate_losses
from rlad.objectives.tokens import Tokens


class GrpoObjective(Objective[GrpoConfig]):
    """GRPO: the clipped surrogate of the likelihood ratio to the behaviour policy (arXiv:2602.22495, Eq. 1).

    ```
    loss  = -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)
    log r = log pi - log pi_old
    ```

    The loss is per token. `Objective` averages it and adds `reference_kl * KL(pi, pi_ref)`.
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the GRPO loss of each token."""
        return surrogate_losses(tokens, tokens.policy_logprobs - tokens.behaviour_logprobs, self.config)
