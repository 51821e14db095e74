"""The run directory: its files, its lock, and the rules for continuing a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from rlad.config import RunConfig
from rlad.errors import ConfigError, RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.models.locations import PinnedModel

_LOCK = ".lock"
# Sections that may change when a run is continued: they decide where it runs, not what it computes.
_MAY_CHANGE_ON_RESUME = {"cluster", "verifier_pool", "weights"}


class RunDirectory:
    """Paths of a run. All its file names are defined here."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()

    config = property(lambda self: self.path / "config.yaml")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    evaluations = property(lambda self: self.path / "evaluations.jsonl")
    tensorboard = property(lambda self: self.path / "tensorboard")
    ledger = property(lambda self: self.path / "ledger.sqlite")
    traces = property(lambda self: self.path / "traces")
    training_traces = property(lambda self: self.path / "training_traces.arrow")
    checkpoints = property(lambda self: self.path / "checkpoints")
    export = property(lambda self: self.path / "export")
    timeline = property(lambda self: self.path / "timeline.json")
    report = property(lambda self: self.path / "report.html")
    log = property(lambda self: self.path / "run.log")
    cluster = property(lambda self: self.path / "cluster.json")
    teachers = property(lambda self: self.path / "teachers.json")
    models = property(lambda self: self.path / "models.json")

    @contextmanager
    def hold(self, config: RunConfig, *, resume: bool) -> Iterator[None]:
        """Create the directory or continue the run in it, and lock it until the block ends.

        If the block of a new run fails before it has written anything, such as in a check of its models or prompts, the
        directory stays free: the corrected command works as typed.

        Raises:
            RunDirectoryError: The directory holds a run and `resume` is False, it holds other files, or another process
                holds its lock.
            ConfigError: The run was started with another configuration.
        """
        if self.config.exists() and not resume:
            raise RunDirectoryError(
                f"{self.path} already holds a run: continue it with --resume, or choose another --run-dir"
            )
        if not self.config.exists() and self._has_files():
            raise RunDirectoryError(f"{self.path} exists, is not empty and holds no run: choose another --run-dir")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunDirectoryError(f"another process is running in {self.path}") from error
        with lock:
            if self.config.exists():
                self._require_same(config)
                yield
                return
            write_atomically(self.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            try:
                yield
            except Exception:
                if not self._has_files():
                    self.config.unlink()
                    self.models.unlink(missing_ok=True)
                raise

    def read_config(self) -> RunConfig:
        """Read the resolved configuration of the run.

        Raises:
            RunDirectoryError: The directory holds no run.
        """
        if not self.config.is_file():
            raise RunDirectoryError(f"no run at {self.path}: it holds no {self.config.name}")
        return RunConfig.model_validate(yaml.safe_load(self.config.read_text()))

    def record_models(self, models: Mapping[str, PinnedModel]) -> None:
        """Record the models of the run by the setting that names them. A continued run keeps the first record."""
        if not self.models.is_file():
            records = {setting: asdict(model) for setting, model in models.items()}
            write_atomically(self.models, json.dumps(records, indent=2) + "\n")

    def read_models(self) -> dict[str, PinnedModel]:
        """Read the models that the run was started with, by setting; empty before they are recorded."""
        if not self.models.is_file():
            return {}
        return {setting: PinnedModel(**model) for setting, model in json.loads(self.models.read_text()).items()}

    def record_teachers(self, fingerprints: Mapping[str, str]) -> None:
        """Record the fingerprints of the teachers by id. A continued run must have the same teachers.

        Raises:
            ConfigError: A fingerprint differs from the recorded one.
        """
        if self.teachers.is_file() and (before := json.loads(self.teachers.read_text())) != fingerprints:
            changed = sorted(
                name for name in before.keys() | fingerprints.keys() if before.get(name) != fingerprints.get(name)
            )
            raise ConfigError(
                f"{', '.join(changed)} is another model than when {self.path} was started (fingerprints in "
                f"{self.teachers}): deploy the former one again, or start another run"
            )
        write_atomically(self.teachers, json.dumps(dict(fingerprints)) + "\n")

    def evaluation_at(self, step: int) -> EvaluationSummary | None:
        """Return the evaluation recorded after `step` trained steps; None if there is none."""
        found = [line for line in read_json_lines(self.evaluations) if line["step"] == step]
        return EvaluationSummary.from_dict(found[-1]) if found else None

    def _has_files(self) -> bool:
        """Return whether the directory holds anything but what is written before the first check has passed."""
        if not self.path.exists():
            return False
        own = {self.config.name, self.models.name, _LOCK}
        temporary = f".{self.config.name}."
        return any(path.name not in own and not path.name.startswith(temporary) for path in self.path.iterdir())

    def _require_same(self, config: RunConfig) -> None:
        stored, given = self.read_config().model_dump(mode="json"), config.model_dump(mode="json")
        for setting, model in self.read_models().items():
            # A reference may be replaced by its recorded version, for example a branch by its commit.
            if _at(given, setting) == model.label:
                _set(given, setting, _at(stored, setting))
        different = [key for key in given if key not in _MAY_CHANGE_ON_RESUME and stored.get(key) != given[key]]
        if different:
            raise ConfigError(
                f"{self.path} was started with other settings of {', '.join(different)}: a run is continued as it was "
                f"started (see {self.config}); for other settings choose another --run-dir"
            )


def _at(settings: Any, setting: str) -> Any:
    """Return the value of a dotted setting; None if it does not exist."""
    for key in setting.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _set(settings: dict[str, Any], setting: str, value: Any) -> None:
    parents, _, key = setting.rpartition(".")
    _at(settings, parents)[key] = value


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically: neither a reader nor a crash sees a partial file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSONL file, without a last line that a kill cut short. A missing file has none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
