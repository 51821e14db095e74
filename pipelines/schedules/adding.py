"""Creation of a schedule. All settings are validated when it is added, so that no tick fails over a typing error."""

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
from rlad.credentials import require_no_secrets
from rlad.errors import ConfigError, ScheduleError
from rlad.registry.registry import ModelRegistry


def schedule_settings(
    name: str, config: Path, overrides: list[str], *, directory: Path, registry: str, **settings: Any
) -> ScheduleConfig:
    """Build the schedule of a run's YAML file. Paths become absolute, since ticks may run in another directory.

    Raises:
        ConfigError: The run's settings or the schedule's settings are invalid, or hold a secret.
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
    require_no_secrets(found, where=f"schedule {name}")
    return validated(ScheduleConfig, found, where=f"schedule {name}")


def add_schedule(store: ScheduleStore, config: ScheduleConfig, *, replace: bool = False) -> None:
    """Validate a schedule, freeze its evaluation prompts, and store it.

    Raises:
        ConfigError: The cron fields never match a date, or the run's settings are invalid.
        ScheduleError: A schedule of that name exists, or has an unfinished run.
        DataError: The evaluation prompts cannot be read.
        RegistryError: The registry cannot be opened.
    """
    if not replace and any(schedule.name == config.name for schedule in store.schedules()):
        raise ScheduleError(f"schedule {config.name!r} already exists: change it with --replace, or remove it first")
    if unfinished := store.unfinished(config.name):
        raise ScheduleError(
            f"schedule {config.name} has an unfinished run, {unfinished[0].run_id}, and cannot be changed: "
            "wait until the run ends, or let the next tick continue it"
        )
    if next_fire_time(parse_cron(config.cron, config.timezone), datetime.now(UTC)) is None:
        raise ConfigError(f"cron {config.cron!r} never matches a date")
    ModelRegistry.open(config.registry)
    run = validated(RunConfig, config.run, where=f"the run of schedule {config.name}")
    store.add(config, evaluation_fingerprint=freeze_evaluation(config, run), replace=replace)
