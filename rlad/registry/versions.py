"""Records of the registry and their JSON form. Records are never changed after they are written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from rlad.errors import ContractError, CorruptModelError, RegistryError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.monitoring.cost import RunCost

PRODUCTION = "production"
LATEST = "latest"
"""Reference to the newest version. Reserved: it cannot be set as an alias."""

_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\Z')
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """File of a model.

    Attributes:
        path: Path relative to the model's directory.
        bytes: Size, in bytes.
        sha256: SHA-256, hexadecimal.
    """

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _stays_inside(self.path):
            raise ContractError(f"the path of a model file must be inside the model's directory; got {self.path!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Lineage of a model version.

    Attributes:
        run_id: Id of the run that trained the model.
        run_dir: Run directory.
        config_sha256: SHA-256 of the run's resolved `config.yaml`.
        parent: Reference of the version that the student was initialized from, for example `kk-student@3`; None if it
            was not a registered version.
        base_model: Path of the student in the configuration.
        teachers: Path of each teacher in the configuration by teacher id, with the fingerprint of its weights if
            available.
        prompts_fingerprint: Fingerprint of the training prompts.
        num_prompts: Number of training prompts.
        steps: Number of training steps.
        rlad_version: Version of rlad that registered the model.
        git_commit: Commit of the code that registered the model; None outside a git checkout.
        created_at: Creation time of this record, UTC, ISO 8601.
        cost: Cost of the run; None if the run recorded none, as in earlier versions of rlad.
    """

    run_id: str
    run_dir: str
    config_sha256: str
    parent: str | None
    base_model: str
    teachers: Mapping[str, str]
    prompts_fingerprint: str
    num_prompts: int
    steps: int
    rlad_version: str
    git_commit: str | None
    created_at: str
    cost: RunCost | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """Version of a model. Its manifest is written after all files of the model.

    Attributes:
        name: Name of the model, for example `kk-student`.
        version: Number of the version, from 1.
        idempotency_key: Key given by the writer. A model has at most one version per key.
        directory: Directory of the files, relative to the registry.
        files: All files, by path.
        lineage: Lineage of the version.
        evaluation: Evaluation of the model.
        metrics: Further metrics recorded by the writer.
        config: Resolved configuration of the run; None if the writer gave none.
        created_at: Creation time, UTC, ISO 8601.
    """

    name: str
    version: int
    idempotency_key: str
    directory: str
    files: tuple[ModelFile, ...]
    lineage: Lineage
    evaluation: EvaluationSummary
    metrics: Mapping[str, float]
    config: Mapping[str, Any] | None
    created_at: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or not _stays_inside(self.directory):
            raise ContractError(
                f"a version must be inside the registry; got name {self.name!r} and directory {self.directory!r}"
            )

    @property
    def reference(self) -> str:
        """Reference of the version, for example `kk-student@3`."""
        return f"{self.name}@{self.version}"

    @property
    def num_bytes(self) -> int:
        """Total size of the files, in bytes."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasChange:
    """Move of an alias.

    Attributes:
        sequence: Number of the change in the model's change log.
        kind: `set` or `rollback`. A rollback undoes the last `set`, which determines the next rollback's target.
        alias: Name of the alias.
        previous: Version before the move; None if the alias did not exist.
        version: Version after the move.
        reason: Reason, as free text.
        by: User and machine.
        at: Time, UTC, ISO 8601.
    """

    sequence: int
    kind: Literal["set", "rollback"]
    alias: str
    previous: int | None
    version: int
    reason: str
    by: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retirement:
    """Retirement of versions. Retired versions cannot be used any more, and their files may be deleted."""

    sequence: int
    versions: tuple[int, ...]
    by: str
    at: str
    kind: Literal["retire"] = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineState:
    """State of a model after a change.

    Attributes:
        sequence: Number of the change; 0 before the first.
        aliases: Version by alias.
        retired: Retired versions.
    """

    sequence: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    retired: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """Entry of the change log: a change and the state after it.

    Attributes:
        entry_id: Random id, by which a writer recognizes its own entry.
        change: The change.
        state: State after the change.
    """

    entry_id: str
    change: AliasChange | Retirement
    state: LineState


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDifference:
    """Differences between two versions: pairs of values by key. Equal values are left out.

    Attributes:
        a: Reference of the first version.
        b: Reference of the second version.
        config: Settings by dotted key. Empty if one of the versions has no configuration.
        lineage: Lineage by dotted key.
        evaluation: Accuracy (mean@k) of each group and of `all`.
        files: SHA-256 by path; None if the version has no such file.
    """

    a: str
    b: str
    config: Mapping[str, tuple[Any, Any]]
    lineage: Mapping[str, tuple[Any, Any]]
    evaluation: Mapping[str, tuple[float | None, float | None]]
    files: Mapping[str, tuple[str | None, str | None]]


def difference(a: ModelVersion, b: ModelVersion) -> VersionDifference:
    """Return the differences between two versions, of the same model or of different models."""
    return VersionDifference(
        a=a.reference,
        b=b.reference,
        config=_different(_flat(a.config), _flat(b.config)) if a.config is not None and b.config is not None else {},
        lineage=_different(_flat(asdict(a.lineage)), _flat(asdict(b.lineage))),
        evaluation=_different(_accuracies(a.evaluation), _accuracies(b.evaluation)),
        files=_different({file.path: file.sha256 for file in a.files}, {file.path: file.sha256 for file in b.files}),
    )


def require_name(name: str, kind: Literal["model", "alias"]) -> str:
    """Return the name of a model or alias if it is valid.

    Raises:
        RegistryError: The name is ambiguous, or would be a path outside the registry.
    """
    if not _NAME.fullmatch(name) or name == LATEST or (kind == "alias" and name.isdecimal()):
        raise RegistryError(
            f"invalid name for {'an alias' if kind == 'alias' else 'a model'}: {name!r}. Use up to 63 lower-case "
            f"letters, digits, dots, hyphens and underscores, starting with a letter or digit. {LATEST!r} is "
            "reserved, and an alias must not be a number"
        )
    return name


def parse_reference(reference: str) -> tuple[str, str | None]:
    """Split a reference such as `kk-student@3`, `kk-student@production` or `kk-student`.

    Returns:
        Name of the model, and the version: a number or an alias, or None if the reference has none.

    Raises:
        RegistryError: The reference is invalid.
    """
    name, at, ref = reference.partition("@")
    if at and not ref:
        raise RegistryError(
            f"expected a version or an alias after @, for example kk-student@3 or kk-student@{PRODUCTION}; got "
            f"{reference!r}"
        )
    return require_name(name, "model"), ref or None


def to_json(record: object) -> bytes:
    """Return a record as JSON, with the SHA-256 of the rest as its last value."""
    text: bytes = TypeAdapter(type(record)).dump_json(record, indent=2)
    return text[:-2] + b',\n  "sha256": "' + hashlib.sha256(text).hexdigest().encode() + b'"\n}'


def from_json(kind: type[_Record], content: bytes, where: str) -> _Record:
    """Parse a record from JSON, and verify its SHA-256. Records of earlier versions of rlad have none.

    Args:
        kind: Class of the record.
        content: JSON text.
        where: Location of the record, for error messages.

    Raises:
        RegistryError: The JSON is not a valid record of this class.
        CorruptModelError: The record was damaged or changed.
    """
    try:
        record = TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise RegistryError(
            f"{where} is not a valid {kind.__name__} of this version of rlad: {place}: {first['msg']}"
        ) from error
    seal = _SEAL.search(content)
    unsealed = content if seal is None else content[: seal.start()] + b"\n}"
    unknown = json.loads(unsealed).keys() - TypeAdapter(kind).dump_python(record).keys()
    if unknown or (seal is not None and hashlib.sha256(unsealed).hexdigest().encode() != seal[1]):
        raise CorruptModelError(f"{where} is damaged: it does not match its SHA-256. Restore it from a backup")
    return record


def _stays_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(pure.parts) and ".." not in pure.parts and not pure.is_absolute()


def _accuracies(summary: EvaluationSummary) -> dict[str, float]:
    return {**{group: row.mean for group, row in summary.groups.items()}, "all": summary.overall.mean}


def _flat(tree: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in (tree or {}).items():
        if isinstance(value, Mapping) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _different(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}
