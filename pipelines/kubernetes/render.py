"""Files of `rlad deploy render`: manifests as YAML, with a comment at each value that the site must provide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import yaml

from pipelines.kubernetes import Kind, manifests
from pipelines.kubernetes.options import Deployment, DeploymentOptions
from pipelines.kubernetes.pods import Manifest
from pipelines.kubernetes.sizing import PodGroup, SizingOptions, pod_groups
from pipelines.kubernetes.workload import STORAGE, kubernetes_name, read_workload
from rlad.config import EvaluationSuite, RunConfig
from rlad.errors import PlanError
from rlad.integrity.durable import write_atomically
from rlad.verifiers import CodeTestsVerifierConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One rendered file.

    Attributes:
        name: File name.
        build: Function that builds the content. It raises `PlanError` if the workload or the options do not support it.
        purpose: Lines of the file's header comment.
    """

    name: str
    build: Callable[[Deployment], Manifest]
    purpose: tuple[str, ...]


_CONFIG = _File(
    name="config.yaml", build=manifests.config_map, purpose=("Configuration of the run, mounted in the head.",)
)
_NETWORK = _File(
    name="networkpolicy.yaml",
    build=manifests.network_policy,
    purpose=(
        "Closes the ports of the Ray pods. Label a pod of this namespace to open one for it:",
        "rlad.io/submits-to to submit jobs, rlad.io/teacher-client to reach a teacher over HTTP.",
        "Pods of Prometheus (app.kubernetes.io/name: prometheus) reach the metrics.",
    ),
)
_SERVE = _File(
    name="serve.yaml",
    build=manifests.serve_config,
    purpose=(
        "Teachers for `serve deploy` on a Ray cluster with the same labels.",
        "rayservice.yaml contains the same applications.",
    ),
)
_FILES: Mapping[Kind, tuple[_File, ...]] = {
    "rayjob": (
        _CONFIG,
        _NETWORK,
        _File(
            name="rayjob.yaml",
            build=manifests.ray_job,
            purpose=(
                "One run with its own cluster, which is deleted after the run.",
                "A retry continues from the last checkpoint.",
            ),
        ),
    ),
    "raycluster": (
        _CONFIG,
        _NETWORK,
        _File(
            name="raycluster.yaml",
            build=manifests.ray_cluster,
            purpose=(
                "Persistent cluster that runs are submitted to.",
                "Requires a Redis, which keeps the head's state over restarts.",
            ),
        ),
    ),
    "rayservice": (
        _SERVE,
        _NETWORK,
        _File(
            name="rayservice.yaml",
            build=manifests.ray_service,
            purpose=("Persistent service of the teachers only. Requires a Redis.",),
        ),
    ),
    "cronjob": (
        _CONFIG,
        _NETWORK,
        _File(
            name="cronjob.yaml",
            build=manifests.cron_job,
            purpose=(
                "Recurring runs on the persistent cluster of raycluster.yaml, for Kubernetes without RayCronJob.",
                "The pod lives as long as the run, so `Forbid` prevents overlaps.",
                "If the pod is lost, the lock prevents them.",
            ),
        ),
    ),
    "raycronjob": (
        _CONFIG,
        _NETWORK,
        _File(
            name="raycronjob.yaml",
            build=manifests.ray_cron_job,
            purpose=(
                "Recurring runs, each with its own cluster.",
                "Requires KubeRay's feature gate RayCronJob, which is off by default.",
                "RayCronJob has no concurrency policy: the lock ends a run at once if the previous one is active.",
            ),
        ),
    ),
}
# Files that are applied with the folder. The others are applied on request only.
_APPLIED_BY_DEFAULT = ("config.yaml", "networkpolicy.yaml", "rayjob.yaml")
_SHARED = ("config.yaml", "networkpolicy.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Rendered files.

    Attributes:
        files: Contents by file name.
        groups: Pod groups of the deployment.
        left_out: Reasons for kinds that were not rendered, if all kinds were requested.
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
    """Render the files of one kind, or of all kinds that the configuration and the options support.

    Args:
        config: Configuration of a run, comparison or evaluation.
        overrides: Settings that override the configuration.
        kind: Kind to render, or `all`.
        options: Settings of the cluster's administrator.
        sizing: Sizes of nodes and pools.
        source: Name of the configuration in header comments.

    Raises:
        ConfigError: The configuration is invalid.
        PlanError: The workload cannot be deployed with these options.
    """
    workload = read_workload(config, overrides)
    for run in workload.runs:
        _require_accepted_isolation(run)
    deployment = Deployment(workload=workload, groups=pod_groups(workload.runs, sizing), options=options)
    files: dict[str, str] = {}
    left_out: list[str] = []
    for kind_to_render in get_args(Kind)[1:] if kind == "all" else (kind,):
        try:
            files |= {file.name: _text(file, deployment, source) for file in _FILES[kind_to_render]}
        except PlanError as error:
            if kind != "all":
                raise
            left_out.append(f"{kind_to_render}: {error}")
    files["kustomization.yaml"] = _kustomization(files, source)
    return Rendered(files=files, groups=deployment.groups, left_out=tuple(left_out))


def _require_accepted_isolation(run: RunConfig | EvaluationSuite) -> None:
    """Refuse to judge programs in pods, which have no namespaces, unless the configuration accepts that.

    Raises:
        PlanError: A verifier runs programs and requires namespaces.
    """
    for task, verifier in run.verifiers.items():
        if isinstance(verifier, CodeTestsVerifierConfig) and verifier.isolation == "full":
            raise PlanError(
                f"verifiers.{task} runs programs of the student and requires isolation 'full', but pods without "
                "capabilities under seccomp RuntimeDefault are refused namespaces. Landlock and seccomp remain: set "
                f"verifiers.{task}.isolation=filtered to accept that (the workers check it at their start)"
            )


def write(rendered: Rendered, directory: Path) -> None:
    """Write the files to a directory.

    Raises:
        PlanError: `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise PlanError(f"--out requires a directory; {directory} is a file")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in rendered.files.items():
        write_atomically(directory / name, text)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that indents lists, writes multi-line text as blocks, and uses no aliases."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _text(file: _File, deployment: Deployment, source: str) -> str:
    body = yaml.dump(file.build(deployment), Dumper=_Dumper, sort_keys=False, width=1000)
    header = [f"{file.name}: rendered from {source} by `rlad deploy render`. Do not edit; render again.", *file.purpose]
    return "".join(f"# {line}\n" for line in header) + "\n".join(_noted(body.splitlines(), deployment)) + "\n"


def _noted(lines: Sequence[str], deployment: Deployment) -> list[str]:
    """Add comments to the first line of each value that the site must provide, and to guessed memory sizes."""
    options = deployment.options
    notes = {
        f"image: {options.image}": "build it from deploy/docker and push it to your registry (--image)",
        f"claimName: {options.storage_claim}": f"provide: ReadWriteMany storage for {STORAGE} (--storage-claim)",
        f"secretName: {options.token_secret}": "provide: secret with the key auth_token",
        f"redisAddress: {options.redis_address}": "provide: Redis outside of this cluster (--redis-address)",
        f"name: {options.redis_secret}": "provide: secret with the key password",
    }
    noted = []
    for line in lines:
        text = line.strip().removeprefix("- ")
        noted.append(f"{line}  # {notes.pop(text)}" if text in notes else line)
    guessed = {f"- groupName: {kubernetes_name(group.pool)}" for group in deployment.groups if group.is_memory_guessed}
    return [
        f"{line}  # memory is a guess, since the model is not on this machine (--memory)"
        if line.strip() in guessed
        else line
        for line in noted
    ]


def _kustomization(files: Mapping[str, str], source: str) -> str:
    """Build kustomization.yaml, for `kubectl apply -k` and for overlays."""
    resources = [name for name in files if name in _APPLIED_BY_DEFAULT]
    others = [name for name in files if name not in (*_APPLIED_BY_DEFAULT, "serve.yaml")]
    if set(resources) <= set(_SHARED) and others:
        resources, others = [*resources, *others], []
    lines = [
        f"# Rendered from {source} by `rlad deploy render`. Do not edit; render again.",
        "apiVersion: kustomize.config.k8s.io/v1beta1",
        "kind: Kustomization",
        "resources:",
    ]
    lines += [f"  - {name}" for name in resources]
    lines += [f"  # - {name}  # not applied by default" for name in others]
    return "\n".join(lines) + "\n"
