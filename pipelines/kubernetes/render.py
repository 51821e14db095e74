"""The files that `rlad deploy render` writes: manifests as YAML, with a note wherever a person has to decide something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import yaml

from pipelines.kubernetes import Kind, manifests
from pipelines.kubernetes.manifests import Deployment, DeploymentOptions, Manifest
from pipelines.kubernetes.sizing import PodGroup, SizingOptions, pod_groups
from pipelines.kubernetes.workload import STORAGE, kubernetes_name, read_workload
from pipelines.run.directory import write_atomically
from rlad.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One file of the folder.

    Attributes:
        build: makes its content; raises `PlanError` where the workload or the options have no such thing.
        purpose: what it is for, a line each.
    """

    name: str
    build: Callable[[Deployment], Manifest]
    purpose: tuple[str, ...]


_CONFIG = _File(
    name="config.yaml", build=manifests.config_map, purpose=("The run's configuration; the head mounts it.",)
)
_SERVE = _File(
    name="serve.yaml",
    build=manifests.serve_config,
    purpose=(
        "The teachers for `serve deploy` on a Ray cluster with the same labels: what rayservice.yaml carries inside.",
    ),
)
_FILES: Mapping[Kind, tuple[_File, ...]] = {
    "rayjob": (
        _CONFIG,
        _File(
            name="rayjob.yaml",
            build=manifests.ray_job,
            purpose=(
                "One run with a cluster of its own, which goes when the run has ended. Tried again, it continues from its last checkpoint.",
            ),
        ),
    ),
    "raycluster": (
        _CONFIG,
        _File(
            name="raycluster.yaml",
            build=manifests.ray_cluster,
            purpose=(
                "A cluster that stays and holds its machines; runs are submitted to it. Needs a Redis, with which its head may die and come back.",
            ),
        ),
    ),
    "rayservice": (
        _SERVE,
        _File(
            name="rayservice.yaml",
            build=manifests.ray_service,
            purpose=("The teachers alone, as a service that stays. Needs a Redis.",),
        ),
    ),
    "cronjob": (
        _CONFIG,
        _File(
            name="cronjob.yaml",
            build=manifests.cron_job,
            purpose=(
                "Recurring runs on the standing cluster of raycluster.yaml, for Kubernetes without RayCronJob.",
                "Its pod stays while the run goes on, which is what `Forbid` looks at; should the pod be lost, the lock still keeps runs apart.",
            ),
        ),
    ),
    "raycronjob": (
        _CONFIG,
        _File(
            name="raycronjob.yaml",
            build=manifests.ray_cron_job,
            purpose=(
                "Recurring runs, each with a cluster of its own. Needs KubeRay's feature gate RayCronJob, which is off by default.",
                "RayCronJob has no concurrency policy: a run that finds the one before still going ends at once, by the lock.",
            ),
        ),
    ),
}
# What a folder starts when it is applied as a whole; everything else in it is for those who ask for it.
_APPLIED_BY_DEFAULT = ("config.yaml", "rayjob.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """What was made.

    Attributes:
        files: contents by name.
        left_out: why a kind was not made, where all were asked for.
    """

    files: Mapping[str, str]
    groups: tuple[PodGroup, ...]
    left_out: tuple[str, ...]


def render(
    config: Path,
    overrides: Sequence[str],
    *,
    kind: Kind,
    options: DeploymentOptions,
    sizing: SizingOptions,
    source: str,
) -> Rendered:
    """Make the files of one kind, or of all that the configuration and the options allow.

    Args:
        source: the configuration as the files name it.

    Raises:
        ConfigError: the configuration is wrong.
        PlanError: it cannot be deployed so; which option or setting to change.
    """
    workload = read_workload(config, overrides)
    deployment = Deployment(workload=workload, groups=pod_groups(workload.runs, sizing), options=options)
    files: dict[str, str] = {}
    left_out: list[str] = []
    for each in get_args(Kind)[1:] if kind == "all" else (kind,):
        try:
            files |= {file.name: _text(file, deployment, source) for file in _FILES[each]}
        except PlanError as error:
            if kind != "all":
                raise
            left_out.append(f"{each}: {error}")
    files["kustomization.yaml"] = _kustomization(files, source)
    return Rendered(files=files, groups=deployment.groups, left_out=tuple(left_out))


def write(rendered: Rendered, directory: Path) -> None:
    """Write the files.

    Raises:
        PlanError: `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise PlanError(f"{directory} is a file: --out names a directory")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in rendered.files.items():
        write_atomically(directory / name, text)


class _Dumper(yaml.SafeDumper):
    """Indents lists, writes texts of several lines as they read, and never refers to what it wrote before."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _text(file: _File, deployment: Deployment, source: str) -> str:
    body = yaml.dump(file.build(deployment), Dumper=_Dumper, sort_keys=False, width=1000)
    header = [f"{file.name}, made of {source} by `rlad deploy render`; change that and render again.", *file.purpose]
    return "".join(f"# {line}\n" for line in header) + "\n".join(_noted(body.splitlines(), deployment)) + "\n"


def _noted(lines: Sequence[str], deployment: Deployment) -> list[str]:
    """Put a note beside the first line that holds each thing which has to exist in the cluster, or was guessed."""
    options = deployment.options
    notes = {
        f"image: {options.image}": "build it from deploy/docker and push it where your nodes pull from (--image)",
        f"claimName: {options.storage_claim}": f"yours: storage that all nodes mount at once (ReadWriteMany), seen as {STORAGE} (--storage-claim)",
        f"secretName: {options.token_secret}": "yours: a secret with the key auth_token",
        f"redisAddress: {options.redis_address}": "yours: a Redis that is not in this cluster (--redis-address)",
        f"name: {options.redis_secret}": "yours: a secret with the key password",
    }
    noted = []
    for line in lines:
        text = line.strip().removeprefix("- ")
        noted.append(f"{line}  # {notes.pop(text)}" if text in notes else line)
    guessed = {f"- groupName: {kubernetes_name(group.pool)}" for group in deployment.groups if group.is_memory_guessed}
    return [
        f"{line}  # its memory is a guess: the model is not here (--memory)" if line.strip() in guessed else line
        for line in noted
    ]


def _kustomization(files: Mapping[str, str], source: str) -> str:
    """The folder as something `kubectl apply -k` and a site's own overlay take."""
    resources = [name for name in files if name in _APPLIED_BY_DEFAULT]
    others = [name for name in files if name not in (*_APPLIED_BY_DEFAULT, "serve.yaml")]
    if not resources or (resources == ["config.yaml"] and others):
        resources, others = [*resources, *others], []
    lines = [
        f"# Made of {source} by `rlad deploy render`.",
        "apiVersion: kustomize.config.k8s.io/v1beta1",
        "kind: Kustomization",
        "resources:",
    ]
    lines += [f"  - {name}" for name in resources]
    lines += [f"  # - {name}  # applied on purpose only" for name in others]
    return "\n".join(lines) + "\n"
