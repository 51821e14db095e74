"""What a scheduled run trains on and what it is measured on: files that come in over time, and an evaluation that never changes."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.schedules.records import Schedule, ScheduleDirectory, SeenFile
from rlad.config import EvaluationConfig, PromptFile, PromptSource, RunConfig
from rlad.config.schedule import ScheduleConfig
from rlad.data.prompt_files import read_prompt_file, write_prompt_file
from rlad.data.prompts import load_prompts
from rlad.data.records import PromptRecord, dataset_fingerprint
from rlad.errors import DataError, ScheduleError


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshedPrompts:
    """What a run trains on.

    Attributes:
        files: that it came from.
        new_files: those of them that no finished run has seen.
        left_out: prompts that are also in the frozen evaluation.
    """

    records: list[PromptRecord]
    files: tuple[SeenFile, ...]
    new_files: tuple[SeenFile, ...]
    left_out: int


def evaluation_fingerprint(records: Sequence[PromptRecord], evaluation: EvaluationConfig) -> str:
    """Of everything that an accuracy depends on beside the student: the prompts, and how responses to them are sampled."""
    how = evaluation.model_dump(mode="json", exclude={"prompts", "every_steps", "group_by"})
    return hashlib.blake2b(
        json.dumps([dataset_fingerprint(records), how], sort_keys=True).encode(), digest_size=8
    ).hexdigest()


def freeze_evaluation(config: ScheduleConfig, run: RunConfig) -> str:
    """Write the run's evaluation prompts to a file of the schedule's own, from which every tick evaluates.

    Returns:
        The fingerprint that every tick must find again.
    """
    records = load_prompts(seen_from(run.evaluation.prompts, config.working_dir))
    fingerprint = evaluation_fingerprint(records, run.evaluation)
    _write(records, ScheduleDirectory(path=Path(config.directory)).evaluation(fingerprint))
    return fingerprint


def frozen_evaluation(schedule: Schedule, run: RunConfig) -> list[PromptRecord]:
    """The frozen prompts, as they were when the schedule was added. Where their file is not there, they are made again.

    Raises:
        ScheduleError: they are others than then, so no student could be compared with an earlier one.
    """
    expected = schedule.evaluation_fingerprint
    frozen = schedule.directory.evaluation(expected)
    is_lost = not frozen.is_file()
    records = (
        load_prompts(seen_from(run.evaluation.prompts, schedule.config.working_dir))
        if is_lost
        else read_prompt_file(frozen)
    )
    found = evaluation_fingerprint(records, run.evaluation)
    if found != expected:
        raise ScheduleError(
            f"the frozen evaluation at {frozen} is not the one that {schedule.name} was added with ({found}, then {expected}): "
            f"put the file back, or take the new one on purpose with `rlad schedule add {schedule.name} ... --replace`"
        )
    if is_lost:
        _write(records, frozen)
    return records


def refresh_prompts(
    schedule: ScheduleConfig, run: RunConfig, evaluation: Iterable[PromptRecord], seen: set[SeenFile]
) -> RefreshedPrompts | None:
    """Read the files that match the schedule's pattern; None where there is nothing to train on.

    A prompt that is also in the evaluation is left out. The same prompt in two files counts once.

    Raises:
        DataError: a file cannot be read, or two prompts of one id differ.
    """
    assert schedule.prompts is not None
    form = run.prompts.form if isinstance(run.prompts, PromptFile) else "sentences"
    # Path.glob takes no absolute pattern.
    paths = sorted(glob.glob(str(Path(schedule.working_dir) / schedule.prompts.pattern), recursive=True))  # noqa: PTH207
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
                    f"{file.path}: prompt id {record.id!r} is another prompt in {where}: ids are unique over all files of a schedule"
                )
    held_out = {_content(record) for record in evaluation}
    records = [record for record, _ in by_id.values() if _content(record) not in held_out]
    if not records:
        return None
    return RefreshedPrompts(
        records=records, files=tuple(chosen), new_files=tuple(new_files), left_out=len(by_id) - len(records)
    )


def seen_from(source: PromptSource, working_dir: str) -> PromptSource:
    """A prompt source whose path, where it has one, does not depend on where the process runs."""
    return (
        source.model_copy(update={"path": str(Path(working_dir) / source.path)})
        if isinstance(source, PromptFile)
        else source
    )


def write_prompts(records: Sequence[PromptRecord], path: Path) -> PromptFile:
    """Write prompts for one run and say how they are read."""
    _write(records, path)
    return PromptFile(path=str(path))


def _write(records: Sequence[PromptRecord], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    write_prompt_file(records, temporary)
    temporary.replace(path)


def _content(record: PromptRecord) -> str:
    return json.dumps(record.prompt, sort_keys=True)
