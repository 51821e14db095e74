"""A finished run becomes a version in the registry: its export with where it comes from and what it reaches."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.result import finished_result, run_id_of
from rlad import __version__
from rlad.config import RunConfig, TeacherConfig
from rlad.data.chat import tokenizer_fingerprint
from rlad.data.prompts import load_prompts
from rlad.data.records import dataset_fingerprint
from rlad.errors import PlanError, RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.model_fingerprint import model_fingerprint
from rlad.models.references import resolve_model
from rlad.registry.change_log import utc_now
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage, ModelVersion, parse_reference

_GIT_TIMEOUT_S = 10.0


def register_run(
    registry: ModelRegistry,
    name: str,
    run: RunDirectory,
    *,
    parent: str | None = None,
    evaluation: EvaluationSummary | None = None,
) -> ModelVersion:
    """Register a finished run's export as the next version of a model; a run that is registered already gives the
    version it has.

    Args:
        parent: reference of the version that the run's student started from, as `kk-student@3`.
        evaluation: on other prompts than the run's own; the run's last one by default.

    Raises:
        RunDirectoryError: no run, or one that is not finished.
        RegistryError: the registry refuses it.
        DataError: the run's training prompts cannot be read any more.
    """
    config = run.read_config()
    result = finished_result(config, run)
    if result is None:
        raise RunDirectoryError(
            f"the run at {run.path} is not finished, so it has nothing to register: continue it with --resume"
        )
    if parent is not None:
        parent_name, ref = parse_reference(parent)
        parent = registry.get(parent_name, ref or "latest").reference
    steps = read_json_lines(run.metrics)
    return registry.add(
        name,
        run.export,
        lineage=lineage_of(config, run, parent=parent),
        evaluation=evaluation or result.after,
        metrics={key: float(value) for key, value in steps[-1].items() if isinstance(value, int | float)}
        if steps
        else {},
        config=config.model_dump(mode="json"),
        idempotency_key=run_id_of(config, run),
    )


def lineage_of(config: RunConfig, run: RunDirectory, *, parent: str | None) -> Lineage:
    """Where a run's student comes from. Reads the training prompts and the teachers' weights."""
    prompts = load_prompts(config.prompts)
    return Lineage(
        run_id=run_id_of(config, run),
        run_dir=str(run.path),
        config_sha256=hashlib.sha256(run.config.read_bytes()).hexdigest(),
        parent=parent,
        base_model=config.student.path,
        teachers={
            name: _identified(teacher.path) if isinstance(teacher, TeacherConfig) else teacher.label
            for name, teacher in config.teachers_by_id.items()
        },
        prompts_fingerprint=dataset_fingerprint(prompts),
        num_prompts=len(prompts),
        steps=config.training.steps,
        rlad_version=__version__,
        git_commit=_git_commit(Path(__file__).parents[2]),
        created_at=utc_now(),
    )


def _identified(model_path: str) -> str:
    """A model's path and the fingerprint of its weights; the path alone where they are not on this machine."""
    try:
        directory = resolve_model(model_path)
    except PlanError:
        return model_path
    return f"{model_path} ({model_fingerprint(directory, tokenizer=tokenizer_fingerprint(directory))})"


def _git_commit(root: Path) -> str | None:
    """The commit of a checkout, None where there is none; marked where files differ from it."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
