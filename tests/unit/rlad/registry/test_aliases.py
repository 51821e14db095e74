"""Aliases: compare-and-swap, rollbacks and lost replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlad.errors import AliasConflictError, ModelNotFoundError, RegistryError
from rlad.registry.change_log import rollback_target
from rlad.registry.changes import AliasChange
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import ModelVersion

NAME = "kk-student"


def test_alias_moves_only_from_the_expected_version(
    add: Callable[..., ModelVersion], registry: ModelRegistry, model: Path
) -> None:
    for key in "abc":
        add(registry, key, model)
    registry.promote(NAME, 1, expected=None, reason="nothing before")
    with pytest.raises(
        AliasConflictError, match="expected production of kk-student .* at no version; it is at version 1"
    ):
        registry.promote(NAME, 2, expected=None, reason="late")
    with pytest.raises(AliasConflictError, match="at version 3; it is at version 1"):
        registry.promote(NAME, 2, expected=3, reason="late")
    registry.promote(NAME, 2, expected=1, reason="better")
    registry.set_alias(NAME, "best", 2, expected=None, reason="best so far")
    registry.promote(NAME, 2, expected=2, reason="is there already")
    assert registry.aliases(NAME) == {"production": 2, "best": 2}
    moves = [(move.sequence, move.alias, move.previous, move.version, move.reason) for move in registry.history(NAME)]
    assert moves == [
        (1, "production", None, 1, "nothing before"),
        (2, "production", 1, 2, "better"),
        (3, "best", None, 2, "best so far"),
    ]


def test_alias_requires_existing_version_and_valid_name(
    add: Callable[..., ModelVersion], local: ModelRegistry, model: Path
) -> None:
    add(local, "a", model)
    with pytest.raises(ModelNotFoundError, match="kk-student@7 does not exist"):
        local.promote(NAME, 7, expected=None, reason="")
    for alias in ("7", "latest", "../up"):
        with pytest.raises(RegistryError, match="invalid name for an alias"):
            local.set_alias(NAME, alias, 1, expected=None, reason="")


def test_slower_of_two_concurrent_promotions_fails(
    add: Callable[..., ModelVersion], registry: ModelRegistry, uri: str, model: Path
) -> None:
    """Another process moves the alias between this one's read and write."""
    for key in "ab":
        add(registry, key, model)

    def overtaken(path: str, content: bytes) -> bool:
        other = ModelRegistry.open(uri)
        if not other.aliases(NAME):
            other.promote(NAME, 2, expected=None, reason="faster")
        return registry.store.create_at(path, content)

    slow = ModelRegistry(store=replace(registry.store, create_at=overtaken))
    with pytest.raises(AliasConflictError, match="at no version; it is at version 2"):
        slow.promote(NAME, 1, expected=None, reason="slower")
    assert [move.reason for move in registry.history(NAME)] == ["faster"]


def test_retry_after_lost_reply_is_not_a_conflict(
    add: Callable[..., ModelVersion], registry: ModelRegistry, model: Path
) -> None:
    """The store wrote the file, its reply was lost, and the client's retry finds that the file exists."""

    def answer_lost(path: str, content: bytes) -> bool:
        registry.store.create_at(path, content)
        return registry.store.create_at(path, content)

    unlucky = ModelRegistry(store=replace(registry.store, create_at=answer_lost))
    assert add(unlucky, "a", model).version == 1
    unlucky.promote(NAME, 1, expected=None, reason="once")
    assert registry.aliases(NAME) == {"production": 1}
    assert len(registry.history(NAME)) == 1
    assert len(registry.versions(NAME)) == 1


def test_each_rollback_goes_back_one_version(
    add: Callable[..., ModelVersion], registry: ModelRegistry, model: Path
) -> None:
    for key in "abcd":
        add(registry, key, model)
    for version, expected in ((1, None), (2, 1), (3, 2)):
        registry.promote(NAME, version, expected=expected, reason="better")
    assert [registry.rollback(NAME, reason="bad"), registry.rollback(NAME, reason="bad too")] == [2, 1]
    with pytest.raises(ModelNotFoundError, match="no version to roll back to: production is at version 1"):
        registry.rollback(NAME, reason="further")
    registry.promote(NAME, 4, expected=1, reason="mended")
    assert registry.rollback(NAME, reason="bad again") == 1
    assert [(move.kind, move.previous, move.version) for move in registry.history(NAME)][3:] == [
        ("rollback", 3, 2),
        ("rollback", 2, 1),
        ("set", 1, 4),
        ("rollback", 4, 1),
    ]


@pytest.mark.parametrize(
    ("moves", "retired", "target"),
    [
        ([], [], None),
        ([("set", 1)], [], None),
        ([("set", 1), ("set", 2), ("set", 1)], [], 2),
        ([("set", 1), ("set", 2), ("set", 3)], [2], 1),
        ([("set", 1), ("set", 2), ("set", 3), ("rollback", 1)], [2], None),
        ([("set", 1), ("set", 2), ("rollback", 1), ("set", 3), ("set", 4)], [], 3),
    ],
)
def test_rollback_target(moves: list[Any], retired: list[int], target: int | None) -> None:
    fixed: dict[str, Any] = {"alias": "production", "previous": None, "reason": "", "by": "", "at": ""}
    changes = [
        AliasChange(sequence=index, kind=kind, version=version, **fixed) for index, (kind, version) in enumerate(moves)
    ]
    assert rollback_target(changes, retired) == target
