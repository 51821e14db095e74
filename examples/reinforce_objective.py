"""Custom objective: REINFORCE with importance weights, and a bonus for agreement with the teacher.

Loss of a token: `-w A log pi`, with `w = min(pi / pi_old, cap)` held constant. With `agreement` above 0 the advantage
grows by `agreement * (log pi_T - log pi_old)`, so that tokens which the teacher prefers are reinforced.

The class is complete as it stands and can be used from Python, as `main` does. To name it in a run's configuration
(`objective: {name: reinforce}`) register it in two places of rlad:

1. Move `ReinforceConfig` to rlad/config/objectives.py and add it to the union `ObjectiveConfig` at the end of the
   file.
2. Move `ReinforceObjective` to a new file in rlad/objectives/ and add the pair to `_OBJECTIVES` in
   rlad/objectives/build.py.

CONTRIBUTING.md lists the tests that go with it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from rlad.advantages import group_advantages
from rlad.objectives import Objective, ObjectiveSettings
from rlad.objectives.objective import TokenLosses
from rlad.objectives.tokens import Tokens


class ReinforceConfig(ObjectiveSettings):
    """Settings of the objective. The options of every objective, for example `reference_kl`, are inherited."""

    name: Literal["reinforce"] = "reinforce"
    cap: Annotated[float, Field(gt=0, description="Maximum importance weight.")] = 2.0
    agreement: Annotated[float, Field(ge=0, description="Weight of the teacher's log ratio in the advantage.")] = 0.0

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss needs the teacher's log-probabilities. Without them, a run needs no teacher."""
        return self.agreement > 0

    @property
    def _is_advantage_times_something(self) -> bool:
        # False: with the teacher's term, a token of a response with advantage 0 has a loss too.
        return self.agreement == 0


class ReinforceObjective(Objective[ReinforceConfig]):
    """REINFORCE with truncated importance weights."""

    def token_losses(self, tokens: Tokens) -> TokenLosses:
        """Return the loss of each token.

        All columns have one shape, [B, T] for padded batches or [S] for packed ones. Aggregation over tokens, masks,
        the reference penalty and the entropy bonus are applied by the base class.
        """
        log_ratio = (tokens.policy_logprobs - tokens.behaviour_logprobs).detach()
        weights = log_ratio.exp().clamp(max=self.config.cap)
        advantages = tokens.advantages
        if tokens.teacher_logprobs is not None:
            advantages = advantages + self.config.agreement * (tokens.teacher_logprobs - tokens.behaviour_logprobs)
        return TokenLosses(losses=-weights * advantages * tokens.policy_logprobs, means={})


def main() -> None:
    """Train a policy over four tokens, without engines: only token 2 earns a reward."""
    torch.manual_seed(0)
    objective = ReinforceObjective(ReinforceConfig(cap=2.0))
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for step in range(31):
        with torch.no_grad():  # sample eight responses of one token each
            responses = torch.multinomial(logits.softmax(-1), num_samples=8, replacement=True)
            behaviour = logits.log_softmax(-1)[responses]
        rewards = (responses == 2).float()
        output = objective(
            policy_logprobs=logits.log_softmax(-1)[responses][:, None],  # [B, T] = [8, 1]
            behaviour_logprobs=behaviour[:, None],
            advantages=torch.as_tensor(group_advantages(rewards.numpy(), "rloo"), dtype=torch.float32),
            mask=torch.ones(8, 1, dtype=torch.bool),
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step={step} reward_mean={rewards.mean():.2f} probability={logits.softmax(-1)[2]:.2f}")


if __name__ == "__main__":
    main()
