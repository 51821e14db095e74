"""Creation of a schedule. All settings are validated when it is added, so that no tick fails over a typing error."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.schedules.cron import next_fire_time, parse_cron
from pipelines.schedules.prompts import freeze_evaluation, require_valid_gates
from pipelines.schedules.state.changes import changed_settings
from pipelines.schedules.store import ScheduleStore
from rlad.config import RunConfig, load_run_config
from rlad.config.load import merged, read_settings, validated
from rlad.config.schedule import ScheduleConfig
from rlad.credentials import require_no_secrets
from rlad.errors import ConfigError, ScheduleError
from rlad.registry.registry import ModelRegistry

# Settings that an unfinished run does not depend on.
_TIMING = frozenset(
    {"cron", "timezone", "start_at", "end_at", "catch_up", "misfire_grace_s", "priority", "run_if", "margin"}
    | {"keep_versions", "notify", "require_approval"}
)


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


def gate_settings(file: Path | None) -> dict[str, Any]:
    """Return the settings `gates` and `gate_verifiers` of a YAML file; empty without a file.

    Raises:
        ConfigError: The file cannot be read, or has other settings.
    """
    if file is None:
        return {}
    settings = read_settings(file)
    if unknown := settings.keys() - {"gates", "gate_verifiers"}:
        raise ConfigError(f"{file}: expected gates and gate_verifiers; got {', '.join(sorted(map(str, unknown)))}")
    return dict(settings)


def notify_settings(
    webhook_env: str | None, token_env: str | None, command: str | None, events: Sequence[str] | None
) -> dict[str, object]:
    """Return the settings `notify` of the command line; `events` None or empty means all."""
    settings: dict[str, object] = {
        "webhook_env": webhook_env,
        "token_env": token_env,
        "command": shlex.split(command or ""),
    }
    return {**settings, "events": list(events)} if events else settings


def job_settings(address: str | None, token_env: str | None) -> dict[str, Any]:
    """Return the launcher's settings for runs that are jobs of the cluster at `address`; empty for None.

    Raises:
        ConfigError: A token is given without an address.
    """
    if address is None:
        if token_env is not None:
            raise ConfigError("--job-token-env requires --job-address; got the token alone")
        return {}
    return {"launcher": {"kind": "ray_job", "address": address, "token_env": token_env}}


def edit_schedule(
    store: ScheduleStore, name: str, overrides: Sequence[str], *, author: str, reason: str | None = None
) -> dict[str, tuple[Any, Any]]:
    """Change settings of a schedule, and record the change. The frozen evaluation stays unless its settings change.

    Args:
        overrides: Dotted `key=value` settings of the schedule.

    Returns:
        The former and new value of each changed setting.

    Raises:
        ConfigError: A setting is unknown or invalid, or holds a secret.
        ScheduleError: The schedule does not exist, or has an unfinished run that the change would affect.
    """
    schedule = store.schedule(name)
    before = schedule.config.model_dump(mode="json")
    config = validated(ScheduleConfig, merged(before, overrides), where=f"schedule {name}")
    changed = changed_settings(before, config.model_dump(mode="json"))
    if "name" in changed:
        raise ConfigError(f"the name of schedule {name} cannot be changed: add another schedule")
    if not changed:
        return {}
    _require_valid_times(config)
    run = validated(RunConfig, config.run, where=f"the run of schedule {name}")
    affecting = {key for key in changed if key.partition(".")[0] not in _TIMING}
    if affecting and (unfinished := store.unfinished(name)):
        raise ScheduleError(
            f"schedule {name} has an unfinished run, {unfinished[0].run_id}, which {', '.join(sorted(affecting))} "
            "would change: wait until the run ends"
        )
    if any(key.partition(".")[0] in ("gates", "gate_verifiers", "run", "prompts") for key in changed):
        require_valid_gates(config, run)
    is_other_set = any(key.startswith("run.evaluation") for key in changed) or "directory" in changed
    fingerprint = freeze_evaluation(config, run) if is_other_set else schedule.evaluation_fingerprint
    store.add(config, evaluation_fingerprint=fingerprint, replace=True)
    store.changes.record(name, "edited", author=author, settings=changed, reason=reason)
    return changed


def _require_valid_times(config: ScheduleConfig) -> None:
    if next_fire_time(parse_cron(config.cron, config.timezone), datetime.now(UTC)) is None:
        raise ConfigError(f"cron {config.cron!r} never matches a date")


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
    _require_valid_times(config)
    ModelRegistry.open(config.registry)
    run = validated(RunConfig, config.run, where=f"the run of schedule {config.name}")
    require_valid_gates(config, run)
    store.add(config, evaluation_fingerprint=freeze_evaluation(config, run), replace=replace)
