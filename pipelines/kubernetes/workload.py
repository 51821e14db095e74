"""Workload of a deployment: a run, comparison or evaluation, read from YAML, as a job with a mounted configuration."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import OmegaConf

from rlad.config import EvaluationSuite, RunConfig, load_evaluation_suite, load_run_config
from rlad.config.comparison import load_comparison
from rlad.config.load import read_settings
from rlad.errors import ConfigError
from rlad.models.references import ReferenceKind, parse_model

STORAGE = PurePosixPath("/mnt/rlad")
"""Mount path of the shared storage in every pod: models, prompts, runs and caches."""

CONFIG_FILE = PurePosixPath("/etc/rlad/config.yaml")
"""Path of the run's configuration in the head's pod."""

# KubeRay derives longer names of pods and services and refuses names that do not fit. RayCronJob has the lowest limit.
_MAX_NAME_CHARS = 36
# Settings with file paths. Relative paths have no meaning in a cluster and are resolved against the shared storage.
_PATH_KEYS = ("path", "traces")
_PLAIN_WORD = re.compile(r"[\w@%+=:,./-]+")
# Settings that direct the run to the rendered nodes.
_OVERRIDES = ("cluster.address=auto", "cluster.pool_labels=true")
# Restarts of a run's driver on the same cluster. KubeRay's retries begin with a new cluster, and only after a failure.
_DRIVER_RESTARTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Run, comparison or evaluation to deploy.

    Attributes:
        name: Name, valid in Kubernetes.
        settings: Content of the mounted configuration file, with paths as seen from the pods.
        runs: Runs of the workload, carried out one after the other. Pools are sized for the largest.
        command: Words of the command up to the output option.
        output: Option that names the run directory, followed by further options.
    """

    name: str
    settings: Mapping[str, Any]
    runs: tuple[RunConfig | EvaluationSuite, ...]
    command: tuple[str, ...]
    output: tuple[str, ...]

    def entrypoint(self, run_dir: str) -> str:
        """Return the command of the job. It passes through two shells: at the submission and on the head.

        Raises:
            ConfigError: A word contains characters that a shell interprets.
        """
        option, *further = self.output
        odd = [word for word in self.command if not _PLAIN_WORD.fullmatch(word)]
        if odd:
            raise ConfigError(f"{odd[0]!r} is not allowed in a job's command: use only letters, digits and @%+=:,./_-")
        return " ".join([*self.command, option, run_dir, *further, *_OVERRIDES])


def read_workload(path: Path, overrides: Sequence[str]) -> Workload:
    """Read the configuration of a run, comparison or evaluation.

    Raises:
        ConfigError: The configuration is invalid.
    """
    settings = read_settings(path)
    if "methods" in settings:
        return _comparison(path, overrides)
    settings = read_settings(path, overrides)
    shipped = _absolute_paths(settings)
    if "sets" in settings:
        suite = load_evaluation_suite(path, overrides)
        evaluate = ("rlad", "eval", str(shipped["student"]["path"]), "--config", str(CONFIG_FILE))
        return Workload(
            name=kubernetes_name(suite.name), settings=shipped, runs=(suite,), command=evaluate, output=("--output",)
        )
    run = load_run_config(path, overrides)
    train = ("rlad", "run", str(CONFIG_FILE))
    return Workload(
        name=kubernetes_name(run.name),
        settings=shipped,
        runs=(run,),
        command=train,
        output=("--run-dir", "--resume", "--max-restarts", str(_DRIVER_RESTARTS)),
    )


def _comparison(path: Path, overrides: Sequence[str]) -> Workload:
    comparison = load_comparison(path, overrides)
    settings = comparison.config.model_dump(mode="json")
    for method in settings["methods"].values():
        method["overrides"] |= dict(map(_leaf, overrides))
    return Workload(
        name=kubernetes_name(comparison.config.name),
        settings=_absolute_paths(settings),
        runs=tuple(planned.config for planned in comparison.runs),
        command=("rlad", "compare", str(CONFIG_FILE)),
        output=("--run-dir", "--resume"),
    )


def _leaf(override: str) -> tuple[str, Any]:
    """Parse an override to the form of a comparison's file: dotted key and value."""
    key, _, _ = override.partition("=")
    value = OmegaConf.select(OmegaConf.from_dotlist([override]), key)
    if OmegaConf.is_config(value):
        raise ConfigError(
            f"override {override!r} of a comparison contains several settings: set each separately, as {key}.NAME=VALUE"
        )
    return key, value


def kubernetes_name(name: str) -> str:
    """Convert a name to a DNS label that begins with a letter, as Kubernetes requires.

    A name that is too long is cut, and ends with a hash of the full name so that it stays unique.
    """
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not label[:1].isalpha():
        label = f"run-{label}"
    if len(label) <= _MAX_NAME_CHARS:
        return label
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{label[: _MAX_NAME_CHARS - 7].rstrip('-')}-{digest}"


def model_in_storage(reference: str) -> str:
    """Return a model reference as seen from the pods: directories are in the shared storage."""
    is_directory = parse_model(reference).kind is ReferenceKind.DIRECTORY
    return str(STORAGE / reference) if is_directory else reference  # an absolute path is unchanged


def _absolute_paths(value: Any, key: str = "") -> Any:
    """Resolve the paths of a configuration against the shared storage.

    Args:
        value: A part of the configuration.
        key: Dotted key of the part.
    """
    if isinstance(value, dict):
        return {name: _absolute_paths(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_absolute_paths(item, key) for item in value]
    *parents, name = key.split(".")
    if name not in _PATH_KEYS or not isinstance(value, str):
        return value
    return model_in_storage(value) if name == "path" and "prompts" not in parents else str(STORAGE / value)
