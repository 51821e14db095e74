"""The run directory: its files, its lock, and the rules for continuing a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from rlad.config import RunConfig
from rlad.config.load import validated
from rlad.credentials import require_no_secrets
from rlad.errors import ConfigError, CorruptFileError, RunDirectoryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.integrity.manifest import require_no_links
from rlad.integrity.seals import SEALS, Seals
from rlad.models.locations import PinnedModel

_LOCK = ".lock"
# Sections that may change when a run is continued: they decide where it runs, not what it computes.
_MAY_CHANGE_ON_RESUME = {"cluster", "cost", "failures", "samples", "tracking", "verifier_pool", "weights"}
_DAMAGED = "Restore it from a backup, or start another run; the checkpoints and the export have manifests of their own"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsRecord:
    """Prompts that a run was started with.

    Attributes:
        training: Fingerprint of the training prompts.
        evaluation: Fingerprint of the evaluation prompts.
        versions: SHA-256 of files on object stores and commits of hub data sets, by their names.
    """

    training: str
    evaluation: str
    versions: Mapping[str, str]


class RunDirectory:
    """Paths of a run. All its file names are defined here."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().resolve()

    config = property(lambda self: self.path / "config.yaml")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    evaluations = property(lambda self: self.path / "evaluations.jsonl")
    tensorboard = property(lambda self: self.path / "tensorboard")
    tracking = property(lambda self: self.path / "tracking")
    ledger = property(lambda self: self.path / "ledger.sqlite")
    traces = property(lambda self: self.path / "traces")
    training_traces = property(lambda self: self.path / "training_traces.arrow")
    samples = property(lambda self: self.path / "samples")
    checkpoints = property(lambda self: self.path / "checkpoints")
    export = property(lambda self: self.path / "export")
    timeline = property(lambda self: self.path / "timeline.json")
    report = property(lambda self: self.path / "report.html")
    log = property(lambda self: self.path / "run.log")
    cluster = property(lambda self: self.path / "cluster.json")
    teachers = property(lambda self: self.path / "teachers.json")
    inputs = property(lambda self: self.path / "inputs.json")
    models = property(lambda self: self.path / "models.json")
    status = property(lambda self: self.path / "status.json")
    owner = property(lambda self: self.path / "owner.json")
    seals = property(lambda self: Seals(self.path))
    prompts = property(lambda self: self.path / "prompts.json")
    heartbeat = property(lambda self: self.path / "heartbeat.json")
    cost = property(lambda self: self.path / "cost.json")

    def require_usable(self, config: RunConfig, *, resume: bool) -> None:
        """Check that `hold` would succeed now, without creating or changing anything.

        Raises:
            RunDirectoryError, ConfigError: As `hold`.
        """
        self._require_free_or_resumed(resume=resume)
        if self.config.exists():
            with self._locked():
                self._require_same(config)

    @contextmanager
    def hold(self, config: RunConfig, *, resume: bool) -> Iterator[None]:
        """Create the directory or continue the run in it, and lock it until the block ends.

        If the block of a new run ends with an error or a signal before it has written anything, everything that
        this method made is removed: the corrected command works as typed.

        Raises:
            RunDirectoryError: The directory holds a run and `resume` is False, it holds other files, or another process
                holds its lock.
            ConfigError: The run was started with another configuration, or the configuration holds a secret.
            CorruptFileError: A file of the run was damaged or changed, or the directory contains a symbolic link.
        """
        require_no_secrets(config.model_dump(mode="json"), where=f"the configuration of {config.name}")
        self._require_free_or_resumed(resume=resume)
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            # Libraries of trackers link to their logs, and rlad reads nothing there.
            require_no_links(self.path, except_below=[self.tracking])
            if self.config.exists():
                self._require_same(config)
                yield
                return
            (self.path / SEALS).unlink(missing_ok=True)  # of a start that was killed before it wrote the configuration
            self.seals.write(self.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
            try:
                yield
            except BaseException:
                if not self._has_files():
                    self._remove(made)
                raise

    def _require_free_or_resumed(self, *, resume: bool) -> None:
        if self.config.exists() and not resume:
            raise RunDirectoryError(
                f"{self.path} already holds a run: continue it with --resume, or choose another --run-dir"
            )
        if not self.config.exists() and self._has_files():
            raise RunDirectoryError(f"{self.path} exists, is not empty and holds no run: choose another --run-dir")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunDirectoryError(f"another process is running in {self.path}") from error
        try:
            yield
        finally:
            lock.release()

    def _remove(self, made: Sequence[Path]) -> None:
        """Remove the files of a run that has not begun, and the folders made for it. Other files stay."""
        for path in (
            self.config,
            self.status,
            self.owner,
            self.models,
            self.prompts,
            self.inputs,
            self.path / SEALS,
            self.path / _LOCK,
        ):
            path.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # another run has made something in it
                folder.rmdir()

    def read_config(self) -> RunConfig:
        """Read the resolved configuration of the run, and verify the run's sealed files.

        Raises:
            RunDirectoryError: The directory holds no run.
            CorruptFileError: A sealed file was damaged or changed, or the configuration cannot be read.
            ConfigError: The run was made with settings that have moved or ended since.
        """
        if not self.config.is_file():
            raise RunDirectoryError(f"no run at {self.path}: it holds no {self.config.name}")
        self.seals.verify(remedy=_DAMAGED)
        try:
            return validated(RunConfig, yaml.safe_load(self.config.read_bytes()), where=str(self.config))
        except ConfigError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise CorruptFileError(
                f"{self.config} is damaged, or was written by another version of rlad: {error}. {_DAMAGED}"
            ) from error

    def record_models(self, models: Mapping[str, PinnedModel]) -> None:
        """Record the models of the run by the setting that names them. A continued run keeps the first record."""
        if not self.models.is_file():
            records = {setting: asdict(model) for setting, model in models.items()}
            self.seals.write(self.models, json.dumps(records, indent=2) + "\n")

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
        self.seals.write(self.teachers, json.dumps(dict(fingerprints)) + "\n")

    def require_same_inputs(self, inputs: Mapping[str, str]) -> None:
        """Refuse to continue the run with other inputs than those recorded.

        Args:
            inputs: Fingerprints of prompts, tokenizer, chat template and models, by what they are.

        Raises:
            ConfigError: A fingerprint differs from the recorded one.
        """
        if not self.inputs.is_file():
            return
        before: dict[str, str] = json.loads(self.inputs.read_text())
        changed = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]
        if changed:
            raise ConfigError(
                f"{self.path} was started with other content of: {', '.join(changed)} (fingerprints in {self.inputs}). "
                "A run is continued with the data and models that it began with: restore them, or choose another "
                "--run-dir for a new run"
            )

    def record_inputs(self, inputs: Mapping[str, str]) -> None:
        """Record the fingerprints of the run's inputs. A continued run must have the same ones.

        Raises:
            ConfigError: A fingerprint differs from the recorded one.
        """
        self.require_same_inputs(inputs)
        if not self.inputs.is_file():
            self.seals.write(self.inputs, json.dumps(dict(inputs), indent=2) + "\n")

    def recorded_prompts(self) -> PromptsRecord | None:
        """Return the record of the run's prompts; None before the run has made one."""
        return PromptsRecord(**json.loads(self.prompts.read_text())) if self.prompts.is_file() else None

    def require_same_prompts(self, found: PromptsRecord) -> None:
        """Refuse to continue a run on other prompts.

        Raises:
            ConfigError: The training or evaluation prompts differ from the recorded ones.
        """
        before = self.recorded_prompts()
        if before is None:
            return
        for kind in ("training", "evaluation"):
            if getattr(before, kind) != getattr(found, kind):
                changed = [name for name, version in before.versions.items() if found.versions.get(name) != version]
                raise ConfigError(
                    f"the {kind} prompts differ from those that {self.path} was started with (fingerprints in "
                    f"{self.prompts.name}: {getattr(before, kind)}, now {getattr(found, kind)}; changed: "
                    f"{', '.join(changed) or 'local files'}): restore them, or start another run"
                )

    def record_prompts(self, found: PromptsRecord) -> None:
        """Record the prompts of a run when it starts."""
        if not self.prompts.is_file():
            self.seals.write(self.prompts, json.dumps(asdict(found), indent=2) + "\n")

    def evaluation_at(self, step: int) -> EvaluationSummary | None:
        """Return the evaluation recorded after `step` trained steps; None if there is none."""
        found = [line for line in read_json_lines(self.evaluations) if line["step"] == step]
        return EvaluationSummary.from_dict(found[-1]) if found else None

    def _has_files(self) -> bool:
        """Return whether the directory holds anything but the configuration, the lock and remains of an early kill."""
        if not self.path.exists():
            return False
        own = (self.config.name, self.status.name, self.owner.name, SEALS)
        temporary = tuple(f".{name}." for name in own)
        return any(
            path.name not in (*own, _LOCK) and not path.name.startswith(temporary) for path in self.path.iterdir()
        )

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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSONL file, without a last line that a kill cut short. A missing file has none.

    Raises:
        CorruptFileError: A line is not JSON.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise CorruptFileError(f"{path} is damaged: {error}. {_DAMAGED}") from error
