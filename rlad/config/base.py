"""What the pydantic models of all sections share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ConfigModel(BaseModel):
    """Frozen, and strict about its keys: a misspelt setting must not train a model for a day."""

    model_config = ConfigDict(extra="forbid", frozen=True)
