"""The directory of one run: what is in it, who may write to it, and when it may be continued."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from rlad.config import RunConfig
from rlad.errors import ConfigError, RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary

# Settings that may differ when a run is continued: where it runs, not what it computes.
_MAY_CHANGE_ON_RESUME = {"cluster", "verifier_pool", "weights"}


class RunDirectory:
    """Paths of a run. Every file name lives here and nowhere else."""

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

    @contextmanager
    def hold(self, config: RunConfig, *, resume: bool) -> Iterator[None]:
        """Make the directory, or continue it, and keep every other process out until the block ends.

        Raises:
            RunDirectoryError: it exists and `resume` is off, it is of another configuration, or another process runs in it.
        """
        if self.config.exists() and not resume:
            raise RunDirectoryError(
                f"{self.path} already holds a run: continue it with --resume, or choose another --run-dir"
            )
        if self.path.exists() and not self.config.exists() and any(self.path.iterdir()):
            raise RunDirectoryError(f"{self.path} exists, is not empty and holds no run: choose another --run-dir")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunDirectoryError(f"another process is running in {self.path}") from error
        with lock:
            if self.config.exists():
                self._require_same(config)
            else:
                write_atomically(self.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            yield

    def read_config(self) -> RunConfig:
        """The resolved configuration of the run.

        Raises:
            RunDirectoryError: there is no run here.
        """
        if not self.config.is_file():
            raise RunDirectoryError(f"no run at {self.path}: it holds no {self.config.name}")
        return RunConfig.model_validate(yaml.safe_load(self.config.read_text()))

    def record_teachers(self, fingerprints: Mapping[str, str]) -> None:
        """Write down which models teach, by teacher id; a run that is continued is taught by the same.

        Raises:
            ConfigError: it was taught by others before.
        """
        if self.teachers.is_file() and (before := json.loads(self.teachers.read_text())) != fingerprints:
            changed = sorted(
                name for name in before.keys() | fingerprints.keys() if before.get(name) != fingerprints.get(name)
            )
            raise ConfigError(
                f"{', '.join(changed)} is another model than when {self.path} was started (fingerprints in {self.teachers}): deploy the former one "
                "again, or start another run"
            )
        write_atomically(self.teachers, json.dumps(dict(fingerprints)) + "\n")

    def evaluation_at(self, step: int) -> EvaluationSummary | None:
        """The evaluation recorded after `step` trained steps, if there is one."""
        found = [line for line in read_json_lines(self.evaluations) if line["step"] == step]
        return EvaluationSummary.from_dict(found[-1]) if found else None

    def _require_same(self, config: RunConfig) -> None:
        stored, given = self.read_config().model_dump(mode="json"), config.model_dump(mode="json")
        different = [key for key in given if key not in _MAY_CHANGE_ON_RESUME and stored.get(key) != given[key]]
        if different:
            raise ConfigError(
                f"{self.path} was started with other settings of {', '.join(different)}: a run is continued as it was started "
                f"(see {self.config}); for other settings choose another --run-dir"
            )


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSONL file; a last line cut by a kill is left out. No file: no lines."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
