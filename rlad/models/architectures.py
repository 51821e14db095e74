"""Built-in table of architectures, for plans and simulations where the hub cannot be reached."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from rlad.errors import PlanError
from rlad.models.references import ReferenceKind, parse_model


def known_architecture(text: str) -> Mapping[str, Any] | None:
    """Return the values of `config.json` that determine the size of a well-known hub model, with its `model_type`.

    Returns:
        The values, or None if the reference is no hub model or the table does not list it.
    """
    try:
        reference = parse_model(text)
    except PlanError:
        return None
    return _table().get(reference.name.lower()) if reference.kind is ReferenceKind.HUB else None


def known_models() -> list[str]:
    """Return the hub ids in the table, in lower case."""
    return sorted(_table())


@cache
def _table() -> dict[str, dict[str, Any]]:
    families = yaml.safe_load((files("rlad.models") / "architectures.yaml").read_text(encoding="utf-8"))
    return {
        name.lower(): {"model_type": family["model_type"], **family["shared"], **model["config"]}
        for family in families
        for model in family["models"]
        for name in model["names"]
    }
