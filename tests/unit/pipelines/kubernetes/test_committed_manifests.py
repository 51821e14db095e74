"""Committed manifests in deploy/ equal the output of `make manifests`, and kustomize can build them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.kubernetes.options import DeploymentOptions
from pipelines.kubernetes.render import render
from pipelines.kubernetes.sizing import SizingOptions

ROOT = Path(__file__).parents[4]
OVERLAYS = ROOT / "deploy" / "kuberay" / "overlays"
SIZES = {"8-gpus": ("qwen3_0.6b_kk_2k.yaml", 80.0), "64-gpus": ("qwen3_8b_math_30k.yaml", 141.0)}


def rendered(name: str, gpu_memory_gib: float) -> dict[str, str]:
    sizing = SizingOptions(gpu_memory_gib=gpu_memory_gib, max_workers={}, memory_gib={})
    options = DeploymentOptions(image="rlad:0.1.0-gpu")
    return dict(
        render(ROOT / "configs" / name, [], kind="all", options=options, sizing=sizing, source=f"configs/{name}").files
    )


@pytest.mark.parametrize("size", SIZES)
def test_committed_manifests_equal_the_rendered_ones(size: str) -> None:
    committed = {path.name: path.read_text() for path in (OVERLAYS / size).iterdir()}
    assert committed == rendered(*SIZES[size]), "run `make manifests`"


def test_second_8_gpu_configuration_has_the_same_pods() -> None:
    """deploy/kuberay therefore has one folder for both configurations."""
    first, second = (
        yaml.safe_load(rendered(name, 80.0)["rayjob.yaml"])
        for name in ("qwen3_0.6b_kk_2k.yaml", "qwen3_1.7b_kk_8k.yaml")
    )
    groups, others = (job["spec"]["rayClusterSpec"]["workerGroupSpecs"] for job in (first, second))
    for group in (*groups, *others):
        del group["template"]["metadata"]["labels"]["app.kubernetes.io/instance"]
    assert groups == others


@pytest.mark.parametrize("size", SIZES)
def test_applying_a_folder_starts_one_run_only(size: str) -> None:
    resources = yaml.safe_load((OVERLAYS / size / "kustomization.yaml").read_text())["resources"]
    kinds = [yaml.safe_load((OVERLAYS / size / name).read_text())["kind"] for name in resources]
    assert kinds == ["ConfigMap", "NetworkPolicy", "RayJob"]


@pytest.mark.parametrize("size", SIZES)
def test_overlay_of_a_site_changes_image_and_namespace(size: str, tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which includes kustomize, is not installed")
    shutil.copytree(OVERLAYS / size, tmp_path / "base")
    site = {
        "resources": ["base"],
        "namespace": "training",
        "images": [{"name": "rlad", "newName": "registry.example/rlad", "newTag": "7"}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(site))
    built = subprocess.run(
        [kubectl, "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    config_map, policy, job = sorted(yaml.safe_load_all(built), key=lambda manifest: manifest["kind"])
    assert {found["metadata"]["namespace"] for found in (config_map, policy, job)} == {"training"}
    cluster = job["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert {container["image"] for pod in pods for container in pod["containers"]} == {"registry.example/rlad:7"}
