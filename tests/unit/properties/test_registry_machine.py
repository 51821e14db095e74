"""Registry against a slow model of it: aliases, rollbacks, retention and repeated keys, through two writers."""

from __future__ import annotations

import shutil
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rlad.errors import AliasConflictError, CorruptModelError, ModelNotFoundError, RegistryError
from rlad.registry.registry import ModelRegistry
from tests.registry_records import EVALUATION, LINEAGE

from .memory_folder import memory_folder

NAME = "kk-student"
versions, aliases, writers = st.integers(1, 6), st.sampled_from(["production", "best"]), st.sampled_from([0, 1])


class RegistryMachine(RuleBasedStateMachine):
    """The model keeps the key of each version, the retired ones, and the moves of `production` as a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = memory_folder()
        self.model = self.folder / "export"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        self.writers = [ModelRegistry.open(str(self.folder / "registry")) for _ in range(2)]
        self.keys: dict[int, str] = {}
        self.retired: set[int] = set()
        self.aliases: dict[str, int] = {}
        self.stack: list[int] = []  # versions that a rollback can return to, the present one last
        self.moves = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def live(self) -> list[int]:
        return sorted(set(self.keys) - self.retired)

    def rollback_target(self) -> int | None:
        present = self.stack[-1] if self.stack else None
        return next(
            (version for version in reversed(self.stack[:-1]) if version not in self.retired and version != present),
            None,
        )

    def fails(self, error: type[RegistryError], operation: Any, *arguments: Any, **options: Any) -> None:
        try:
            operation(*arguments, **options)
        except error:
            return
        raise AssertionError(f"expected {error.__name__}")

    @rule(writer=writers, key=st.sampled_from("abcdef"))
    def add(self, writer: int, key: str) -> None:
        (self.model / "model.safetensors").write_bytes(key.encode())
        registry = self.writers[writer]
        options: dict[str, Any] = {"lineage": LINEAGE, "evaluation": EVALUATION, "idempotency_key": key}
        known = next((version for version, other in self.keys.items() if other == key), None)
        if known is not None and known in self.retired:
            self.fails(RegistryError, registry.add, NAME, self.model, **options)
            return
        added = registry.add(NAME, self.model, **options)
        assert added.version == (known or len(self.keys) + 1)
        self.keys[added.version] = key

    @rule(writer=writers, alias=aliases, version=versions, knows=st.booleans())
    def set_alias(self, writer: int, alias: str, version: int, knows: bool) -> None:
        present = self.aliases.get(alias)
        expected = present if knows else (present or 0) + 1
        move, options = self.writers[writer].set_alias, {"expected": expected, "reason": "r"}
        if version not in self.live:
            self.fails(ModelNotFoundError, move, NAME, alias, version, **options)
        elif not knows:
            self.fails(AliasConflictError, move, NAME, alias, version, **options)
        else:
            move(NAME, alias, version, **options)  # type: ignore[arg-type]
            if version != present:
                self.aliases[alias], self.moves = version, self.moves + 1
                if alias == "production":
                    self.stack.append(version)

    @rule(writer=writers)
    def rollback(self, writer: int) -> None:
        target = self.rollback_target()
        if target is None:
            self.fails(ModelNotFoundError, self.writers[writer].rollback, NAME, reason="r")
            return
        assert self.writers[writer].rollback(NAME, reason="r") == target
        while self.stack and self.stack[-1] != target:
            self.stack.pop()
        self.aliases["production"], self.moves = target, self.moves + 1

    @rule(writer=writers, keep=st.integers(1, 3))
    def retain(self, writer: int, keep: int) -> None:
        kept = {*self.live[-keep:], *self.aliases.values(), self.rollback_target()}
        expected = [version for version in self.live if version not in kept]
        assert self.writers[writer].retain(NAME, keep) == expected
        self.retired |= set(expected)

    @rule(version=versions)
    def damage_and_repair(self, version: int) -> None:
        """A changed file is refused by name, and accepted again once it is restored."""
        if version not in self.live:
            return
        registry = self.writers[0]
        path = registry.local_path(registry.get(NAME, version))
        assert path is not None
        (path / "model.safetensors").write_bytes(b"other")
        self.fails(CorruptModelError, registry.verified_path, NAME, version, self.folder / "cache")
        (path / "model.safetensors").write_bytes(self.keys[version].encode())
        assert registry.verified_path(NAME, version, self.folder / "cache") == path

    @invariant()
    def both_writers_see_the_model(self) -> None:
        for registry in self.writers:
            assert [version.version for version in registry.versions(NAME)] == self.live
            assert registry.aliases(NAME) == self.aliases
            assert [change.sequence for change in registry.history(NAME)] == sorted(
                change.sequence for change in registry.history(NAME)
            )
            assert len(registry.history(NAME)) == self.moves

    @invariant()
    def files_are_there_exactly_for_live_versions(self) -> None:
        folder = self.folder / "registry" / NAME / "models"
        kept = {path.name.rpartition("-")[0] for path in folder.iterdir()} if folder.is_dir() else set()
        assert kept == {self.keys[version] for version in self.live}


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=8, stateful_step_count=15, deadline=None)
