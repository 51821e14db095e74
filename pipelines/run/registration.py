"""Registration of a finished run in the model registry: its export with lineage and evaluation."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from pipelines.run.cost import read_cost
from pipelines.run.directory import RunDirectory, read_json_lines
from pipelines.run.result import finished_result, run_id_of
from rlad import __version__
from rlad.config import RunConfig, SharedTeacherConfig, TeacherConfig
from rlad.config.prompts import pinned
from rlad.data.chat import tokenizer_fingerprint
from rlad.data.prompts import load_prompts
from rlad.data.records import dataset_fingerprint
from rlad.errors import RladError, RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.integrity.manifest import verify_if_sealed
from rlad.model_fingerprint import model_fingerprint
from rlad.models.locations import PinnedModel, fetch_model, pin_model
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
    """Register the export of a finished run as the next version of a model.

    A run that is registered already keeps its version.

    Args:
        registry: The registry.
        name: Name of the model.
        run: Run directory.
        parent: Reference of the version that the run's student started from, for example `kk-student@3`.
        evaluation: Evaluation to record; default: the last one of the run.

    Returns:
        The version of the run.

    Raises:
        RunDirectoryError: The run does not exist or is not finished.
        CorruptFileError: The export or a record of the run is damaged.
        RegistryError: The registry rejects the model.
        DataError: The training prompts of the run cannot be read any more.
    """
    config = run.read_config()
    result = finished_result(config, run)
    if result is None:
        raise RunDirectoryError(f"the run at {run.path} is not finished; resume it with --resume before registering it")
    if parent is not None:
        parent_name, ref = parse_reference(parent)
        parent = registry.get(parent_name, ref or "latest").reference
    verify_if_sealed(
        run.export, remedy="Delete the export: `rlad run ... --resume` writes it again from the last checkpoint"
    )
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
    """Return the lineage of a run's student. Reads the training prompts and the weights of local teachers."""
    recorded, models, cost = run.recorded_prompts(), run.read_models(), read_cost(run)
    prompts = load_prompts(pinned(config.prompts, recorded.versions if recorded is not None else {}))
    return Lineage(
        run_id=run_id_of(config, run),
        run_dir=str(run.path),
        config_sha256=hashlib.sha256(run.config.read_bytes()).hexdigest(),
        parent=parent,
        base_model=_label(config.student.path, models.get("student.path")),
        teachers={
            name: teacher_label(teacher, models.get("teacher.path" if config.teacher else f"teachers.{name}.path"))
            for name, teacher in config.teachers_by_id.items()
        },
        prompts_fingerprint=dataset_fingerprint(prompts),
        num_prompts=len(prompts),
        steps=config.training.steps,
        rlad_version=__version__,
        git_commit=_git_commit(Path(__file__).parents[2]),
        created_at=utc_now(),
        cost=None if cost is None else cost.total,
    )


def _label(reference: str, recorded: PinnedModel | None) -> str:
    """Return a model reference, with the version that the run has resolved it to if it has one."""
    return reference if recorded is None else recorded.label


def teacher_label(teacher: TeacherConfig | SharedTeacherConfig, recorded: PinnedModel | None) -> str:
    """Return a teacher with its version, or a directory of this machine with the fingerprint of its weights."""
    if not isinstance(teacher, TeacherConfig):
        return teacher.label
    if recorded is not None and recorded.version is not None:
        return recorded.label
    try:
        pinned = pin_model(teacher.path)
        if pinned.version is not None:
            return pinned.label
        directory = fetch_model(pinned.location)
    except RladError:
        return teacher.path
    return f"{teacher.path} ({model_fingerprint(directory, tokenizer=tokenizer_fingerprint(directory))})"


def _git_commit(root: Path) -> str | None:
    """Return the commit of a git checkout, with `-dirty` if files differ from it, or None without a checkout."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
