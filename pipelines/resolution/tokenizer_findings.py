"""Findings about the student's tokenizer and chat template, for the plan and the preflight of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.resolution.sampling import sampling_tokens
from rlad.config import RunConfig
from rlad.data.chat import load_tokenizer
from rlad.data.records import PromptRecord
from rlad.model_fingerprint import output_size
from rlad.models.tokenizer_checks import TokenizerFinding, check_tokenizer
from rlad.verifiers import KnightsKnavesVerifierConfig
from rlad.verifiers.response_tags import TaggedVerifierConfig

# Verifiers that read only what is in `<answer>` tags.
_TAGGED = ("countdown", "reasoning_gym")


def tokenizer_findings(
    config: RunConfig, student: Path, teachers: Mapping[str, Path], records: Sequence[PromptRecord]
) -> list[TokenizerFinding]:
    """Return the findings about a student.

    Args:
        config: Configuration of the run.
        student: Directory of the student.
        teachers: Directories of the models that score the student's tokens, by pool.
        records: Prompts of the run.
    """
    tokenizer = load_tokenizer(student)
    sampling, rows = sampling_tokens(tokenizer, student, config), output_size(student)
    tagged = [each for each in config.verifiers.values() if isinstance(each, TaggedVerifierConfig)]
    return check_tokenizer(
        student,
        tokenizer,
        records,
        rows=rows,
        sampled_rows=sampling.vocabulary_size,
        teacher_rows={pool: output_size(path) for pool, path in teachers.items()},
        required_tags=("<answer>", "</answer>") if _needs_tags(config) else (),
        kept_tags={tag for each in tagged for tag in each.tags},
        stop_ids=sampling.stop.token_ids,
    )


def _needs_tags(config: RunConfig) -> bool:
    return any(
        verifier.form == "sentences" if isinstance(verifier, KnightsKnavesVerifierConfig) else verifier.name in _TAGGED
        for verifier in config.verifiers.values()
    )
