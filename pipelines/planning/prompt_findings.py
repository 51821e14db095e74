"""Findings of `rlad plan` on prompt sources: what was left out, shares of a mixture, versions of remote sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pipelines.resolution.overlap import DisjointPrompts
from rlad.config import RunConfig
from rlad.data.order import Mixture
from rlad.errors import DataError


def source_findings(
    config: RunConfig, prompts: DisjointPrompts
) -> Iterator[tuple[Literal["ok", "warning", "error"], str]]:
    """Yield level and text of findings on the prompts of a run."""
    for kind, found in (("training", prompts.training), ("evaluation", prompts.evaluation)):
        if found.too_long:
            limit = config.rollout.max_prompt_tokens
            yield (
                "warning",
                f"{found.too_long} {kind} prompts are left out: longer than rollout.max_prompt_tokens ({limit})",
            )
    for kind, dropped in (("training", prompts.training_dropped), ("evaluation", prompts.evaluation_dropped)):
        if dropped:
            yield (
                "warning",
                f"{dropped} {kind} prompts are left out: they occur in both training and evaluation "
                f"(evaluation.overlap: {config.evaluation.overlap})",
            )
    if prompts.training.mixture is not None:
        try:
            yield "ok", _shares(prompts.training.mixture)
        except DataError as error:
            yield "error", f"prompts: {error}"
    for name, version in {**prompts.training.versions, **prompts.evaluation.versions}.items():
        kind = "SHA-256" if len(version) == 64 else "commit"
        yield "ok", f"{name}: {kind} {version[:12]}"


def _shares(mixture: Mixture) -> str:
    """Return the entries of each source in an epoch, and how often they repeat its prompts."""
    parts = [
        f"{name} {entries / len(mixture.parts):.1%} ({entries} entries of {size} prompts)"
        for name, entries, size in zip(mixture.names, mixture.entries, mixture.sizes, strict=True)
    ]
    return f"mixture, in each epoch of {len(mixture.parts)} entries: {', '.join(parts)}"
