"""Plan of a scheduled run: student, prompts and configuration. Made once per tick and kept for all attempts."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import yaml

from pipelines.run.registration import teacher_label
from pipelines.schedules.prompts import frozen_evaluation, refresh_prompts, resolved_source, write_prompts
from pipelines.schedules.records import RunPlan, Schedule, SeenFile
from rlad.config import PromptFile, PromptSource, RunConfig
from rlad.config.load import validated
from rlad.data.prompts import load_prompts
from rlad.data.records import dataset_fingerprint
from rlad.integrity.durable import write_atomically
from rlad.registry.registry import ModelRegistry


def plan_run(schedule: Schedule, run_id: str, seen: set[SeenFile]) -> RunPlan | None:
    """Choose the student, refresh the prompts, and write the run's configuration.

    Args:
        seen: Prompt files that finished runs have trained on.

    Returns:
        The plan, or None if no prompts to train on were found.

    Raises:
        RladError: The settings, the frozen evaluation, a prompt file or the registry are invalid.
    """
    settings, directory = schedule.config, schedule.directory
    run = validated(RunConfig, settings.run, where=f"the run of schedule {schedule.name}")
    evaluation = frozen_evaluation(schedule, run)
    student, parent = _choose_student(schedule, run)
    prompts, refreshed = resolved_source(run.prompts, settings.working_dir), None
    if settings.prompts is not None:
        refreshed = refresh_prompts(settings, run, evaluation, seen)
        if refreshed is None:
            return None
        prompts = write_prompts(refreshed.records, directory.prompts(run_id))
    frozen = PromptFile(path=str(directory.evaluation(schedule.evaluation_fingerprint)))
    changed = {
        "name": run_id,
        "seed": zlib.crc32(f"{run.seed}:{run_id}".encode()) >> 1 if settings.vary_seed else run.seed,
        "student": run.student.model_copy(update={"path": student}),
        "prompts": prompts,
        "evaluation": run.evaluation.model_copy(update={"prompts": frozen}),
    }
    file = directory.config(run_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, yaml.safe_dump(run.model_copy(update=changed).model_dump(mode="json"), sort_keys=False))
    inputs = _inputs(run, prompts) if settings.run_if == "changed" else {}
    return RunPlan(
        registry=settings.registry,
        model=settings.model,
        student=student,
        parent=parent,
        num_prompts=len(refreshed.records) if refreshed else None,
        files=len(refreshed.files) if refreshed else 0,
        new_files=refreshed.new_files if refreshed else (),
        left_out=refreshed.left_out if refreshed else 0,
        evaluation_fingerprint=schedule.evaluation_fingerprint,
        inputs=inputs,
    )


def _inputs(run: RunConfig, prompts: PromptSource) -> dict[str, str]:
    """Return the fingerprints that a run's lineage records: of prompts and teachers; and of the run's settings."""
    settings = run.model_dump_json(exclude={"name", "seed", "prompts", "cost"})
    return {
        "prompts": dataset_fingerprint(load_prompts(prompts)),
        "settings": hashlib.sha256(settings.encode()).hexdigest(),
        **{f"teacher {name}": teacher_label(teacher, None) for name, teacher in run.teachers_by_id.items()},
    }


def local_copy(registry: ModelRegistry, schedule: Schedule, version: int) -> Path:
    """Return a version's local directory, verified: the registry's own, or a copy in the folder `students`."""
    return registry.verified_path(schedule.config.model, version, schedule.directory.students)


def _choose_student(schedule: Schedule, run: RunConfig) -> tuple[str, int | None]:
    """Return the initial student's path, and its registry version if it has one."""
    registry, alias = ModelRegistry.open(schedule.config.registry), schedule.config.start_from
    version = registry.aliases(schedule.config.model).get(alias) if alias is not None else None
    if version is None:
        return run.student.path, None
    return str(local_copy(registry, schedule, version)), version
