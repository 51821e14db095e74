"""Rendering of the project's configurations for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipelines.kubernetes.options import DeploymentOptions
from pipelines.kubernetes.render import Rendered, render
from pipelines.kubernetes.sizing import SizingOptions

ROOT = Path(__file__).parents[4]
IMAGE = "registry.example/rlad:1"
Manifest = dict[str, Any]


def rendered(config: str | Path, *overrides: str, kind: Any = "all", **options: Any) -> Rendered:
    sizing = SizingOptions(
        gpu_memory_gib=141, max_workers=options.pop("max_workers", {}), memory_gib=options.pop("memory_gib", {})
    )
    path = ROOT / "configs" / config
    return render(
        path, overrides, kind=kind, options=DeploymentOptions(image=IMAGE, **options), sizing=sizing, source=path.name
    )


def manifests(files: Rendered) -> dict[str, Manifest]:
    """By kind; files that are no Kubernetes objects left out."""
    parsed = [
        yaml.safe_load(text) for name, text in files.files.items() if name not in ("serve.yaml", "kustomization.yaml")
    ]
    return {manifest["kind"]: manifest for manifest in parsed}
