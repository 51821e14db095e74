"""Exports of registered versions: what an export is, and figures and tags that other registries show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlad.registry.governance import ModelGovernance
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A version in another registry.

    Attributes:
        target: `mlflow` or `hub`.
        location: Address of the version there.
        was_there: Whether an earlier export had copied the files.
        notes: Remarks for the user.
    """

    target: str
    location: str
    was_there: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Tags and description of a version; empty without any."""

    tags: Mapping[str, str]
    description: str


def notes_of(registry: ModelRegistry, version: ModelVersion) -> Notes:
    """Return the tags and the description of a version."""
    notes = ModelGovernance(registry=registry, name=version.name).notes().get(version.version)
    if notes is None:
        return Notes(tags={}, description="")
    return Notes(tags=notes.tags, description=notes.description)


def figures(version: ModelVersion) -> dict[str, float]:
    """Return the accuracy of a version and its other metrics, without values that are not finite."""
    overall = version.evaluation.overall
    found = {
        **version.metrics,
        "evaluation/accuracy": overall.mean,
        "evaluation/accuracy_low": overall.low,
        "evaluation/accuracy_high": overall.high,
        "evaluation/pass_at_k": overall.pass_at_k,
        "evaluation/response_tokens": overall.response_tokens,
        "evaluation/truncated_fraction": overall.truncated,
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def summary(version: ModelVersion) -> str:
    """Return a version and its accuracy in one line."""
    overall = version.evaluation.overall
    return f"{version.reference}: {overall.mean:.1%} on {overall.prompts} prompts"
