"""Retention, and what crashed writers leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rlad.errors import ModelNotFoundError, RegistryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage, ModelVersion

NAME = "kk-student"


def test_retention_keeps_newest_aliased_and_rollback_target(
    add: Callable[..., ModelVersion], registry: ModelRegistry, model: Path
) -> None:
    versions = [add(registry, key, model) for key in "abcdefg"]
    for version, expected in ((2, None), (3, 2)):
        registry.promote(NAME, version, expected=expected, reason="better")
    registry.set_alias(NAME, "best", 5, expected=None, reason="best")
    assert registry.retain(NAME, keep=1) == [1, 4, 6]
    assert [version.version for version in registry.versions(NAME)] == [2, 3, 5, 7]
    assert registry.retain(NAME, keep=1) == []
    for version in versions:
        assert bool(registry.store.entries(version.directory)) == (version.version in (2, 3, 5, 7))
    with pytest.raises(ModelNotFoundError, match="kk-student@4 was retired .* versions: 2, 3, 5, 7"):
        registry.get(NAME, 4)
    with pytest.raises(ModelNotFoundError, match="retired"):
        registry.promote(NAME, 4, expected=3, reason="too late")
    with pytest.raises(RegistryError, match=r"'d' was registered as kk-student@4 .* has been retired"):
        add(registry, "d", model)
    assert add(registry, "h", model).version == 8
    assert registry.rollback(NAME, reason="bad") == 2


def test_numbers_of_retired_versions_are_not_reused(
    add: Callable[..., ModelVersion], local: ModelRegistry, model: Path
) -> None:
    add(local, "a", model)
    add(local, "b", model)
    local.promote(NAME, 1, expected=None, reason="")
    local.retain(NAME, keep=1)
    add(local, "c", model)
    assert local.retain(NAME, keep=1) == [2]
    assert add(local, "d", model).version == 4


def test_version_promoted_during_retention_is_kept(
    add: Callable[..., ModelVersion], registry: ModelRegistry, uri: str, model: Path
) -> None:
    """Version 1 has no alias when retention reads the state, and is promoted before retention writes."""
    for key in "abc":
        add(registry, key, model)

    def overtaken(path: str, content: bytes) -> bool:
        other = ModelRegistry.open(uri)
        if not other.aliases(NAME):
            other.promote(NAME, 1, expected=None, reason="just now")
        return registry.store.create_at(path, content)

    slow = ModelRegistry(store=replace(registry.store, create_at=overtaken))
    assert slow.retain(NAME, keep=1) == [2]
    assert registry.get(NAME, "production").version == 1
    assert registry.store.entries(registry.get(NAME, 1).directory)


def test_version_retired_during_promotion_is_not_promoted(
    add: Callable[..., ModelVersion], registry: ModelRegistry, uri: str, model: Path
) -> None:
    for key in "abc":
        add(registry, key, model)

    def overtaken(path: str, content: bytes) -> bool:
        ModelRegistry.open(uri).retain(NAME, keep=1)
        return registry.store.create_at(path, content)

    slow = ModelRegistry(store=replace(registry.store, create_at=overtaken))
    with pytest.raises(ModelNotFoundError, match="kk-student@1 was retired"):
        slow.promote(NAME, 1, expected=None, reason="too late")
    assert registry.aliases(NAME) == {}


def test_next_retention_finishes_a_killed_one(
    add: Callable[..., ModelVersion],
    run_program: Callable[[str], subprocess.CompletedProcess[str]],
    local: ModelRegistry,
    model: Path,
) -> None:
    first, _ = add(local, "a", model), add(local, "b", model)
    program = f"""
import os, signal
from dataclasses import replace
from rlad.registry.registry import ModelRegistry
registry = ModelRegistry.open({local.uri!r})
def record_then_die(path, content):
    registry.store.create_at(path, content)
    os.kill(os.getpid(), signal.SIGKILL)
ModelRegistry(store=replace(registry.store, create_at=record_then_die)).retain({NAME!r}, keep=1)
"""
    assert run_program(program).returncode == -signal.SIGKILL
    assert [version.version for version in local.versions(NAME)] == [
        2
    ]  # the retired version is gone, although its files remain
    assert local.store.entries(first.directory)
    assert local.retain(NAME, keep=1) == []
    assert not local.store.entries(first.directory)


def test_writer_killed_before_its_manifest_leaves_no_version(
    add: Callable[..., ModelVersion],
    evaluation: Callable[..., EvaluationSummary],
    run_program: Callable[[str], subprocess.CompletedProcess[str]],
    lineage_record: Lineage,
    registry: ModelRegistry,
    uri: str,
    model: Path,
) -> None:
    lineage, summary = (
        json.dumps({field: getattr(lineage_record, field) for field in lineage_record.__slots__}),
        json.dumps(evaluation().as_dict()),
    )
    program = f"""
import json, os, signal
from dataclasses import replace
from pathlib import Path
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.registry.versions import Lineage
from rlad.registry.registry import ModelRegistry
registry = ModelRegistry.open({uri!r})
def die_before_the_manifest(path, content):
    if "/versions/" in path:
        os.kill(os.getpid(), signal.SIGKILL)
    return registry.store.create_at(path, content)
lineage, evaluation = Lineage(**json.loads({lineage!r})), EvaluationSummary.from_dict(json.loads({summary!r}))
ModelRegistry(store=replace(registry.store, create_at=die_before_the_manifest)).add(
    {NAME!r}, Path({str(model)!r}), lineage=lineage, evaluation=evaluation, idempotency_key="a")
"""
    assert run_program(program).returncode == -signal.SIGKILL
    assert registry.versions(NAME) == []
    assert registry.names() == []
    (orphan,) = registry.store.entries(f"{NAME}/models")
    assert {entry.name for entry in registry.store.entries(f"{NAME}/models/{orphan.name}")} >= {
        "config.json",
        "model.safetensors",
    }
    again = add(registry, "a", model)
    assert again.version == 1
    registry.retain(NAME, keep=1)
    assert registry.store.entries(f"{NAME}/models/{orphan.name}")  # its writer may still be running
    if (path := registry.store.local_path(f"{NAME}/models/{orphan.name}")) is not None:
        three_days_ago = time.time() - 3 * 86400
        for file in (path, *path.rglob("*")):
            os.utime(file, (three_days_ago, three_days_ago))
        registry.retain(NAME, keep=1)
        assert not path.exists()
    assert registry.get(NAME, "latest") == again
