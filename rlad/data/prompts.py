"""Loading of prompts from any prompt source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlad.data.records import PromptRecord

if TYPE_CHECKING:
    from rlad.config.prompts import PromptSource


def load_prompts(source: PromptSource) -> list[PromptRecord]:
    """Generate or read the prompts of a prompt source.

    Raises:
        DataError: The source has too few distinct prompts, or its file is invalid (the message names file and line).
        ConfigError: reasoning-gym is not installed, has no such task, or the task rejects its settings.
    """
    if source.source == "knights_knaves":
        from rlad.data.knights_knaves.prompts import generate_prompts

        return generate_prompts(
            form=source.form, people=source.people, count=source.count, split=source.split, seed=source.seed
        )
    if source.source == "reasoning_gym":
        from rlad.data.reasoning_gym import generate_problems

        return generate_problems(
            source.dataset, size=source.size, split=source.split, seed=source.seed, settings=source.settings
        )
    from rlad.data.prompt_files import read_prompts

    return read_prompts(source).records
