"""Entropy-aware on-policy distillation (EOPD)."""

from __future__ import annotations

from torch import Tensor

from rlad.config.objectives import EopdConfig
from rlad.objectives.divergence import forward_divergence, support_entropy
from rlad.objectives.imitation import imitation_means, imitation_reward
from rlad.objectives.metrics import mean_over
from rlad.objectives.objective import Objective, TokenLosses
from rlad.objectives.ratios import surrogate_losses
from rlad.objectives.tokens import Tokens


class EopdObjective(Objective[EopdConfig]):
    """EOPD: on-policy distillation plus a forward KL where the teacher is uncertain (arXiv:2603.07079).

    ```
    loss  = -min(r R, clip(r, 1 - eps_low, 1 + eps_high) R) + beta 1[H(pi_T) > tau] F
    log r = log pi - log pi_old,  R = log pi_T - log pi_old
    F     = sum over the teacher's K likeliest tokens of pi_T (log pi_T - log pi)
    ```

    The loss is per token. F is neither renormalized nor completed by the tokens outside the support; its gradient in
    `log pi` of a support token is `-pi_T`. H counts all tokens outside the support as one, so it is a lower bound. All
    tokens are in the normalizer, those without F too. With old samples, `log pi` of the current student replaces
    `log pi_old` in R (`reward_student`).
    """

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the loss of each token."""
        config = self.config
        reward = imitation_reward(tokens, config.reward_student)
        log_ratio = tokens.policy_logprobs - tokens.behaviour_logprobs
        surrogate = surrogate_losses(tokens, log_ratio, config, advantages=reward)
        policy, teacher, tail = _support(tokens)
        entropy = support_entropy(teacher, tail)
        # The support of an invalid token is all 0, which is not a distribution: replace its value, not only its weight.
        is_uncertain = (entropy > config.entropy_threshold) & tokens.is_valid
        forward = forward_divergence(policy, teacher).where(is_uncertain, 0)
        return TokenLosses(
            losses=surrogate.losses + config.forward_kl * forward,
            means={
                **surrogate.means,
                **imitation_means(tokens, -reward),
                "objective/teacher_entropy": mean_over(entropy, tokens.is_valid),
                "objective/uncertain_fraction": mean_over(is_uncertain, tokens.is_valid),
                "objective/forward_kl": mean_over(forward, is_uncertain),
            },
        )


def _support(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Return the support columns, which `Needs` guarantees."""
    policy, teacher, tail = tokens.support_logprobs, tokens.teacher_support_logprobs, tokens.teacher_tail_logprobs
    assert policy is not None
    assert teacher is not None
    assert tail is not None
    return policy, teacher, tail
