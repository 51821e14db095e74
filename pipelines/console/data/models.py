"""Models of a registry: versions with aliases and lineage, and the moves that the console makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.console.problems import ForbiddenError, NotFoundError
from rlad.errors import AliasConflictError
from rlad.registry.changes import AliasChange, PromotionRequest, VersionNotes
from rlad.registry.governance import ModelGovernance
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import PRODUCTION, ModelVersion, VersionDifference, difference

APPROVED = "approved"
"""Alias of the version that the console may promote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model as the pages show it.

    Attributes:
        name: Name of the model.
        versions: Versions, newest first.
        aliases: Version by alias.
        history: Moves of the aliases, newest first.
        notes: Tags and descriptions by version.
        requests: Open promotion requests.
        is_approval_required: Whether production moves only with the approval of another person.
    """

    name: str
    versions: Sequence[ModelVersion]
    aliases: Mapping[str, int]
    history: Sequence[AliasChange]
    notes: Mapping[int, VersionNotes]
    requests: Sequence[PromotionRequest]
    is_approval_required: bool

    def requests_for(self, number: int) -> list[PromotionRequest]:
        """Return the open requests to promote a version."""
        return [each for each in self.requests if each.version == number]

    def aliases_of(self, number: int) -> list[str]:
        """Return the aliases of a version."""
        return [alias for alias, version in self.aliases.items() if version == number]

    def version(self, number: int) -> ModelVersion:
        """Return a version.

        Raises:
            NotFoundError: There is no such version.
        """
        found = [version for version in self.versions if version.version == number]
        if not found:
            raise NotFoundError(f"no version {number} of {self.name}")
        return found[0]

    def ancestors(self, version: ModelVersion) -> list[str]:
        """Return the references of the versions that a version descends from, its parent first.

        The list ends with the model that the first of them started from.
        """
        chain: list[str] = []
        while (parent := version.lineage.parent) is not None and parent not in chain:
            chain.append(parent)
            name, _, number = parent.partition("@")
            known = [other for other in self.versions if name == self.name and str(other.version) == number]
            if not known:
                return chain
            version = known[0]
        return [*chain, version.lineage.base_model]


class Models:
    """A registry. Each request reads it anew, since other programs write to it."""

    def __init__(self, uri: str) -> None:
        """
        Args:
            uri: Local path, `s3://bucket/prefix` or `gs://bucket/prefix`.
        """
        self.uri = uri

    def names(self) -> list[str]:
        """Return the names of all models."""
        return self._open().names()

    def one(self, name: str) -> ModelView:
        """Return a model.

        Raises:
            NotFoundError: There is no such model.
            RegistryError: The registry cannot be read.
        """
        registry = self._open()
        if name not in registry.names():
            raise NotFoundError(f"no model {name[:80]!r} in the registry at {registry.uri}")
        governance = ModelGovernance(registry=registry, name=name)
        return ModelView(
            name=name,
            versions=registry.versions(name)[::-1],
            aliases=registry.aliases(name),
            history=registry.history(name)[::-1],
            notes=governance.notes(),
            requests=governance.requests(),
            is_approval_required=governance.is_approval_required,
        )

    def differences(self, name: str, a: int, b: int) -> VersionDifference:
        """Return the differences between two versions of a model.

        Raises:
            ModelNotFoundError: There is no such version.
        """
        registry = self._open()
        return difference(registry.get(name, a), registry.get(name, b))

    def approve(self, name: str, version: int, *, expected: int | None, reason: str, user: str) -> str:
        """Approve a version, and return the effect.

        An open request to promote the version is carried out: production moves. Without one, the alias `approved`
        moves, and the console promotes only this version.

        Raises:
            SelfApprovalError: The user requested the promotion.
            AliasConflictError: Another approval came first.
            ModelNotFoundError: There is no such version.
            RegistryError: The model requires approval, and there is no open request for the version.
        """
        registry = self._open()
        governance = ModelGovernance(registry=registry, name=name)
        requests = [each for each in governance.requests() if each.version == version]
        if not requests and not governance.is_approval_required:
            registry.set_alias(name, APPROVED, version, expected=expected, reason=reason)
            return f"{name}@{version} is approved"
        governance.approve(version, approver=user, reason=reason)
        return f"{name}@{version} is approved, and in production"

    def refuse(self, name: str, version: int, *, reason: str, user: str) -> None:
        """Close the open requests to promote a version.

        Raises:
            RegistryError: There is no open request for the version.
        """
        ModelGovernance(registry=self._open(), name=name).refuse(version, by=user, reason=reason)

    def promote(self, name: str, version: int, *, expected: int | None, reason: str, user: str) -> str:
        """Move the alias `production` to the approved version, and return the effect.

        For a model that requires approval, the promotion is requested instead.

        Raises:
            ForbiddenError: The version is not approved.
            AliasConflictError: Another promotion came first.
            ModelNotFoundError: There is no such version.
        """
        registry = self._open()
        governance = ModelGovernance(registry=registry, name=name)
        if governance.is_approval_required:
            governance.request(version, expected=expected, reason=reason, requester=user)
            return f"{name}@{version} waits for the approval of another person"
        if registry.aliases(name).get(APPROVED) != version:
            raise ForbiddenError(
                f"{name}@{version} is not approved: a user with the role approve has to approve it first"
            )
        registry.promote(name, version, expected=expected, reason=reason)
        return f"{name}@{version} is in production"

    def roll_back(self, name: str, *, expected: int, reason: str) -> int:
        """Move the alias `production` back to the version before, and return it.

        Raises:
            AliasConflictError: Production is not at the expected version any more.
            ModelNotFoundError: There is no previous version.
        """
        registry = self._open()
        present = registry.aliases(name).get(PRODUCTION)
        if present != expected:
            raise AliasConflictError(
                f"production of {name} is at version {present} now, not at {expected}: another process has moved it"
            )
        return registry.rollback(name, reason=reason)

    def _open(self) -> ModelRegistry:
        return ModelRegistry.open(self.uri)
