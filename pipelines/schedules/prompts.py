"""Prompts of scheduled runs: training prompts from files that arrive over time, and a frozen evaluation set."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.schedules.records import Schedule, ScheduleDirectory, SeenFile
from rlad.config import EvaluationConfig, PromptFile, PromptMixture, PromptSource, RunConfig
from rlad.config.schedule import GateConfig, ScheduleConfig
from rlad.data.prompt_files import read_prompt_file, write_prompt_file
from rlad.data.prompts import load_prompts
from rlad.data.records import PromptRecord, dataset_fingerprint, question_key
from rlad.data.sources.object_store import is_object_uri
from rlad.errors import ConfigError, DataError, ScheduleError


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshedPrompts:
    """Training prompts of one run.

    Attributes:
        records: Prompt records.
        files: Files that the records were read from.
        new_files: Files that no finished run has trained on.
        left_out: Number of prompts left out because they are in the frozen evaluation or in a gate.
    """

    records: list[PromptRecord]
    files: tuple[SeenFile, ...]
    new_files: tuple[SeenFile, ...]
    left_out: int


def evaluation_fingerprint(records: Sequence[PromptRecord], evaluation: EvaluationConfig) -> str:
    """Return a fingerprint of evaluation prompts and sampling. Accuracies with equal fingerprints are comparable."""
    sampling = evaluation.model_dump(mode="json", exclude={"prompts", "every_steps", "group_by", "overlap"})
    return hashlib.blake2b(
        json.dumps([dataset_fingerprint(records), sampling], sort_keys=True).encode(), digest_size=8
    ).hexdigest()


def freeze_evaluation(config: ScheduleConfig, run: RunConfig) -> str:
    """Write the run's evaluation prompts to the schedule's directory. Every tick evaluates on this file.

    Returns:
        The evaluation fingerprint, which every tick checks.
    """
    records = load_prompts(resolved_source(run.evaluation.prompts, config.working_dir))
    fingerprint = evaluation_fingerprint(records, run.evaluation)
    _write(records, ScheduleDirectory(path=Path(config.directory)).evaluation(fingerprint))
    return fingerprint


def frozen_evaluation(schedule: Schedule, run: RunConfig) -> list[PromptRecord]:
    """Return the evaluation prompts that were frozen when the schedule was added. A missing file is made again.

    Raises:
        ScheduleError: The prompts or their sampling have changed, so students could not be compared with earlier ones.
    """
    expected = schedule.evaluation_fingerprint
    frozen = schedule.directory.evaluation(expected)
    is_lost = not frozen.is_file()
    records = (
        load_prompts(resolved_source(run.evaluation.prompts, schedule.config.working_dir))
        if is_lost
        else read_prompt_file(frozen)
    )
    found = evaluation_fingerprint(records, run.evaluation)
    if found != expected:
        raise ScheduleError(
            f"frozen evaluation {frozen} has changed since schedule {schedule.name} was added: expected fingerprint "
            f"{expected}, got {found}; restore the file, or accept the new evaluation with "
            f"`rlad schedule add {schedule.name} ... --replace`"
        )
    if is_lost:
        _write(records, frozen)
    return records


def load_gate_prompts(gate: GateConfig, working_dir: str) -> list[PromptRecord]:
    """Return the prompts of a gate."""
    return load_prompts(resolved_source(gate.prompts, working_dir))


def require_valid_gates(config: ScheduleConfig, run: RunConfig) -> None:
    """Check that the gates of a schedule can be evaluated, and that its fixed training prompts are in none of them.

    Raises:
        ConfigError: A task of a gate has no verifier.
        DataError: The prompts of a gate cannot be read, or are training prompts.
    """
    if not config.gates:
        return
    is_fixed = config.prompts is None
    training = load_prompts(resolved_source(run.prompts, config.working_dir)) if is_fixed else []
    trained = set(map(question_key, training))
    for name, gate in config.gates.items():
        records = load_gate_prompts(gate, config.working_dir)
        tasks = {record.task for record in records} - run.verifiers.keys() - config.gate_verifiers.keys()
        if tasks:
            raise ConfigError(
                f"gate {name} has prompts of the tasks {', '.join(sorted(tasks))}, which have no verifier: add them "
                "to gate_verifiers"
            )
        if both := sum(question_key(record) in trained for record in records):
            raise DataError(f"gate {name}: {both} of its {len(records)} prompts are training prompts of the run")


def refresh_prompts(
    schedule: ScheduleConfig, run: RunConfig, evaluation: Iterable[PromptRecord], seen: set[SeenFile]
) -> RefreshedPrompts | None:
    """Read the prompt files that match the schedule's pattern.

    Prompts that are in the evaluation are left out. A prompt that is in two files counts once.

    Returns:
        The prompts, or None if none are left to train on.

    Raises:
        DataError: A file cannot be read, or two different prompts have the same id.
    """
    assert schedule.prompts is not None
    form = run.prompts.form if isinstance(run.prompts, PromptFile) else "sentences"
    # Path.glob does not accept absolute patterns.
    pattern = str(Path(schedule.working_dir) / schedule.prompts.pattern)
    paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    files = [
        SeenFile(path=path, sha256=hashlib.sha256(Path(path).read_bytes()).hexdigest())
        for path in paths
        if Path(path).is_file()
    ]
    new_files = [file for file in files if file not in seen]
    chosen = new_files if schedule.prompts.use == "new" else files
    by_id: dict[str, tuple[PromptRecord, str]] = {}
    for file in chosen:
        for record in read_prompt_file(file.path, form=form):
            known, where = by_id.setdefault(record.id, (record, file.path))
            if known != record:
                raise DataError(
                    f"{file.path}: prompt id {record.id!r} belongs to a different prompt in {where}: "
                    "ids must be unique across all files of a schedule"
                )
    held_out = set(map(question_key, evaluation))
    records = [record for record, _ in by_id.values() if question_key(record) not in held_out]
    if not records:
        return None
    return RefreshedPrompts(
        records=records, files=tuple(chosen), new_files=tuple(new_files), left_out=len(by_id) - len(records)
    )


def resolved_source(source: PromptSource, working_dir: str) -> PromptSource:
    """Return the prompt source with the paths of local files resolved against the working directory."""
    if isinstance(source, PromptFile):
        if is_object_uri(source.path):
            return source
        return source.model_copy(update={"path": str(Path(working_dir) / source.path)})
    if isinstance(source, PromptMixture):
        parts = {
            name: part.model_copy(update={"prompts": resolved_source(part.prompts, working_dir)})
            for name, part in source.parts.items()
        }
        return source.model_copy(update={"parts": parts})
    return source


def write_prompts(records: Sequence[PromptRecord], path: Path) -> PromptFile:
    """Write one run's prompts to `path` and return the source that reads them."""
    _write(records, path)
    return PromptFile(path=str(path))


def _write(records: Sequence[PromptRecord], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    write_prompt_file(records, temporary)
    temporary.replace(path)
