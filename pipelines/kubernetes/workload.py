"""What is deployed: a run, a comparison or an evaluation, read from its YAML, as a job with a configuration file of its own."""

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

STORAGE = PurePosixPath("/mnt/rlad")
"""Where every pod mounts the shared storage: models, prompts, runs, caches."""

CONFIG_FILE = PurePosixPath("/etc/rlad/config.yaml")
"""The run's configuration in the head's pod."""

# KubeRay makes longer names of these, of pods and services, and refuses what would not fit: a RayCronJob's has to be the shortest.
_MAX_NAME_CHARS = 36
# Settings that name files. What is relative in them is so to where the command is typed, which in a cluster is nowhere.
_PATH_KEYS = ("path", "traces")
# What the rendered nodes are for.
_PLAIN_WORD = re.compile(r"[\w@%+=:,./-]+")
_OVERRIDES = ("cluster.address=auto", "cluster.pool_labels=true")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One thing to run.

    Attributes:
        name: fit for Kubernetes.
        settings: of the shipped configuration file, with paths as the pods see them.
        runs: what takes place in it, one after the other; pools have to hold the largest.
        command: the words up to the run directory.
        output: the option that names the run directory, with what else belongs to it.
    """

    name: str
    settings: Mapping[str, Any]
    runs: tuple[RunConfig | EvaluationSuite, ...]
    command: tuple[str, ...]
    output: tuple[str, ...]

    def entrypoint(self, run_dir: str) -> str:
        """What the job runs. Plain words: they pass through a shell where the job is submitted and another where it runs.

        Raises:
            ConfigError: a word that a shell would read otherwise.
        """
        option, *further = self.output
        odd = [word for word in self.command if not _PLAIN_WORD.fullmatch(word)]
        if odd:
            raise ConfigError(
                f"{odd[0]!r} cannot be a word of a job's command: use letters, digits and any of @%+=:,./_-"
            )
        return " ".join([*self.command, option, run_dir, *further, *_OVERRIDES])


def read_workload(path: Path, overrides: Sequence[str]) -> Workload:
    """Read a configuration of any kind.

    Raises:
        ConfigError: what is wrong with it.
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
        name=kubernetes_name(run.name), settings=shipped, runs=(run,), command=train, output=("--run-dir", "--resume")
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
    """An override as a comparison's file has it: dotted key and value."""
    key, _, _ = override.partition("=")
    value = OmegaConf.select(OmegaConf.from_dotlist([override]), key)
    if OmegaConf.is_config(value):
        raise ConfigError(
            f"override {override!r} of a comparison holds several settings: give each by itself, as {key}.NAME=VALUE"
        )
    return key, value


def kubernetes_name(name: str) -> str:
    """A run's name as Kubernetes takes it (a DNS label that begins with a letter). One that must be cut keeps apart from others by a hash of itself."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if not label[:1].isalpha():
        label = f"run-{label}"
    if len(label) <= _MAX_NAME_CHARS:
        return label
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{label[: _MAX_NAME_CHARS - 7].rstrip('-')}-{digest}"


def _absolute_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _absolute_paths(each, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [_absolute_paths(each, key) for each in value]
    names_file = key.rpartition(".")[2] in _PATH_KEYS and isinstance(value, str) and not value.startswith("starter:")
    return str(STORAGE / value) if names_file else value  # an absolute one stays as it is
