"""Fingerprints of all inputs of a run that a continued run must share: data, tokenizer, template and models."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.resolution.prompts import EncodedPrompts
from pipelines.resolution.resolved_run import ResolvedRun
from rlad.data.chat import load_tokenizer, template_fingerprint, tokenizer_fingerprint
from rlad.integrity.manifest import verify_if_sealed
from rlad.model_fingerprint import model_fingerprint

_SETTINGS = ("generation_config.json",)
_DAMAGED = "Copy the model again from where it comes from"


def input_fingerprints(run: ResolvedRun) -> dict[str, str]:
    """Return the fingerprint of every input by what it is, in words for an error message.

    Reads all weights of models in directories. Left out are models with a version, which are recorded by it, and the
    weights of scoring teachers, which their replicas report.

    Raises:
        CorruptFileError: A model has a manifest and differs from it.
    """
    tokenizer = load_tokenizer(run.student)
    teacher_pools = set(run.config.teacher_pools.values())
    pinned = {
        "the student (student.path)": run.models.student,
        **{f"the model of {pool}": model for pool, model in run.models.frozen.items() if pool not in teacher_pools},
        **{f"the reward model of verifiers.{task}": model for task, model in run.models.rewards.items()},
    }
    # A model with a version is recorded with it, and its weights may not be on this machine.
    models = {name: Path(model.location) for name, model in pinned.items() if model.version is None}
    scoring = {Path(model.location) for model in run.models.frozen.values() if model.version is None}
    with ThreadPoolExecutor() as threads:
        for path in {*models.values(), *scoring}:
            verify_if_sealed(path, remedy=_DAMAGED)
        by_path = dict(zip(models.values(), threads.map(_model, models.values()), strict=True))
    return {
        "the training prompts (prompts)": _prompts(run.prompts),
        "the evaluation prompts (evaluation.prompts)": _prompts(run.evaluation_prompts),
        "the student's tokenizer": _tokenizer(tokenizer),
        "the student's chat template": template_fingerprint(tokenizer),
        **{name: by_path[path] for name, path in models.items()},
    }


def _prompts(prompts: EncodedPrompts) -> str:
    """Return a fingerprint of rows as they are used, metadata included, and of their tokens."""
    digest = hashlib.sha256()
    for record, ids in zip(prompts.records, prompts.token_ids, strict=True):
        row = [record.id, record.prompt, record.task, record.answer, record.metadata]
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        digest.update(ids.tobytes())
    return digest.hexdigest()


def _tokenizer(tokenizer: Any) -> str:
    """Return a fingerprint of everything that decides how text becomes tokens, and which token ends a response."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else ""
    parts = [tokenizer_fingerprint(tokenizer), backend, json.dumps(tokenizer.special_tokens_map, default=str)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _model(directory: Path) -> str:
    """Return a fingerprint of configuration, weights and generation settings."""
    settings = [(directory / name).read_text() for name in _SETTINGS if (directory / name).is_file()]
    return model_fingerprint(directory, tokenizer="\0".join(settings))
