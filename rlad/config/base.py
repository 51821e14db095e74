"""Base class and field types of all configuration models."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ConfigModel(BaseModel):
    """Frozen model that rejects unknown keys, so that a misspelled setting fails before training starts."""

    # Errors name the setting and not its value, which may be a secret in the wrong place.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def or_null(value: object) -> object:
    """Return `value` as error messages show it: None is YAML's null."""
    return "null" if value is None else value
