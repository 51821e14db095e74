"""From what a person types to a schedule in the store: everything is looked at now, so that no tick fails at night for a slip of the day."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.schedules.cron import next_fire_time, parse_cron
from pipelines.schedules.prompts import freeze_evaluation
from pipelines.schedules.store import ScheduleStore
from rlad.config import RunConfig, load_run_config
from rlad.config.load import validated
from rlad.config.schedule import ScheduleConfig
from rlad.errors import ConfigError, ScheduleError
from rlad.registry.registry import ModelRegistry


def schedule_settings(
    name: str, config: Path, overrides: list[str], *, directory: Path, registry: str, **settings: Any
) -> ScheduleConfig:
    """A schedule of a run's file, with every path made absolute: whoever ticks may work elsewhere.

    Raises:
        ConfigError: what is wrong with the run's settings or the schedule's.
    """
    run = load_run_config(config, overrides)
    found = {
        "name": name,
        "run": run.model_dump(mode="json"),
        "working_dir": str(Path.cwd()),
        "directory": str(directory.expanduser().absolute()),
        "registry": registry if "://" in registry else str(Path(registry).expanduser().absolute()),
        **settings,
    }
    return validated(ScheduleConfig, found, where=f"schedule {name}")


def add_schedule(store: ScheduleStore, config: ScheduleConfig, *, replace: bool = False) -> None:
    """Check a schedule, freeze its evaluation, and store it.

    Raises:
        ConfigError: fields that never come, or settings that no run has.
        ScheduleError: there is one of that name, or a run of it that has not ended.
        DataError: its evaluation prompts cannot be read.
        RegistryError: no registry can be there.
    """
    if not replace and any(each.name == config.name for each in store.schedules()):
        raise ScheduleError(f"there is a schedule {config.name!r}: change it with --replace, or remove it first")
    if unfinished := store.unfinished(config.name):
        raise ScheduleError(
            f"{config.name} cannot be changed under a run: {unfinished[0].run_id} is under way, or unfinished and the next tick continues it; wait for its end"
        )
    if next_fire_time(parse_cron(config.cron, config.timezone), datetime.now(UTC)) is None:
        raise ConfigError(f"{config.cron!r} never comes: give fields that do")
    ModelRegistry.open(config.registry)
    run = validated(RunConfig, config.run, where=f"the run of schedule {config.name}")
    store.add(config, evaluation_fingerprint=freeze_evaluation(config, run), replace=replace)
