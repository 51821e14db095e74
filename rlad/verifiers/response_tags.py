"""Tags around the thinking and the answer of a response, as the configuration names them."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Tag = Annotated[str, Field(min_length=1)]

THINK_TAGS = ("<think>", "</think>")
ANSWER_TAGS = ("<answer>", "</answer>")
_DEFAULT_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)


class TaggedVerifierConfig(BaseModel):
    """Settings of verifiers that look at the tags of a response."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    think_tags: tuple[_Tag, _Tag] = Field(
        THINK_TAGS, description="Begin and end of the thinking. Text before the end is not looked at."
    )
    answer_tags: tuple[_Tag, _Tag] = Field(
        ANSWER_TAGS, description="Begin and end of the answer, for verifiers that look for one in tags."
    )

    @model_validator(mode="after")
    def _tags_differ(self) -> Self:
        if len(set(self.tags)) < len(self.tags):
            raise ValueError(f"think_tags and answer_tags must be four different texts; got {', '.join(self.tags)}")
        return self

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags: those of the thinking, then those of the answer."""
        return *self.think_tags, *self.answer_tags


def with_default_tags(text: str, config: TaggedVerifierConfig) -> str:
    """Return a response with the configured tags replaced by the default ones, which verifiers look for.

    Default tags that are not configured are ordinary text: they get a space, so that no verifier takes them for tags.
    """
    defaults = (*THINK_TAGS, *ANSWER_TAGS)
    replaced = dict(zip(config.tags, defaults, strict=True))
    if all(tag == default for tag, default in replaced.items()):
        return text
    # Longest first, so that a tag that begins with another one is found.
    pattern = "|".join(re.escape(tag) for tag in sorted(replaced, key=len, reverse=True))
    parts = re.split(f"({pattern})", text)
    return "".join(
        replaced[part] if place % 2 else _DEFAULT_TAG.sub(r"<\1\2 >", part) for place, part in enumerate(parts)
    )
