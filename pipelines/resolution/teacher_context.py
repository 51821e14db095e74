"""Check that prompts and responses fit into the context of each model that scores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.resolution.prompts import EncodedPrompts
from rlad.config import RunConfig
from rlad.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class LongestPrompt:
    """Longest prompt behind which a model scores.

    Attributes:
        prompt_id: Id of the prompt.
        num_tokens: Its length as the model sees it, in tokens.
        is_privileged: Whether the model has a prompt template.
    """

    prompt_id: str
    num_tokens: int
    is_privileged: bool


def longest_prompts(
    config: RunConfig,
    prompts: EncodedPrompts,
    routes: Mapping[str, Mapping[str, float]],
    teacher_prompts: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[str, LongestPrompt]:
    """Return the longest prompt of each teacher and of the reference, by pool.

    Args:
        config: The run's configuration.
        prompts: Training prompts.
        routes: Teachers of every prompt, by prompt id.
        teacher_prompts: Prompts of privileged teachers, by teacher id and prompt id.
    """
    own = {record.id: ids for record, ids in zip(prompts.records, prompts.token_ids, strict=True)}
    seen = {
        pool: teacher_prompts.get(name) or {prompt: ids for prompt, ids in own.items() if name in routes[prompt]}
        for name, pool in config.teacher_pools.items()
    }
    if config.reference is not None:
        seen["reference"] = own
    privileged = {config.teacher_pools[name] for name in teacher_prompts}
    found = {}
    for pool, by_prompt in seen.items():
        longest = max(by_prompt, key=lambda prompt: len(by_prompt[prompt]))
        found[pool] = LongestPrompt(
            prompt_id=longest, num_tokens=len(by_prompt[longest]), is_privileged=pool in privileged
        )
    return found


def require_context(pool: str, context_tokens: int, longest: LongestPrompt, *, max_response_tokens: int) -> None:
    """Refuse a model whose context is too small for the longest prompt and a response of full length.

    Args:
        pool: Pool of the model.
        context_tokens: Size of its context, in tokens.
        longest: Longest prompt behind which it scores.
        max_response_tokens: Maximum length of a response.

    Raises:
        PlanError: The context is too small.
    """
    needed = longest.num_tokens + max_response_tokens
    if needed <= context_tokens:
        return
    shorten = f"the prompt_template of {pool}, or" if longest.is_privileged else "the prompts, or"
    raise PlanError(
        f"the {pool} has a context of {context_tokens} tokens; prompt {longest.prompt_id} has {longest.num_tokens} "
        f"tokens {'with its prompt_template ' if longest.is_privileged else ''}and a response up to "
        f"{max_response_tokens}: shorten {shorten} reduce rollout.max_response_tokens, or use a model with a larger "
        "context"
    )
