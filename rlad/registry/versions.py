"""Records of the registry, and their JSON. None of them is ever changed once it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from rlad.errors import ContractError, RegistryError
from rlad.evaluation.accuracy import EvaluationSummary

PRODUCTION = "production"
LATEST = "latest"
"""What always names the newest version, so it is no alias that could be set."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model: its path inside the model's directory, size in bytes, SHA-256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _stays_inside(self.path):
            raise ContractError(f"a model's file has to lie inside its directory, got {self.path!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a version comes from.

    Attributes:
        run_id, run_dir: the run that made it, and where its records were.
        config_sha256: of the run's resolved `config.yaml`.
        parent: reference of the version that the student started from, as `kk-student@3`; None where it started from elsewhere.
        base_model: the student's path in the configuration.
        teachers: by a teacher's id its path in the configuration, with the fingerprint of its weights where they could be read.
        prompts_fingerprint, num_prompts: of the training prompts.
        steps: that were trained.
        git_commit: of the code that registered it, where that is a checkout.
        created_at: when this was written, UTC, ISO 8601.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a model: the manifest, which is written after all of the model's files.

    Attributes:
        name, version: `kk-student`, 3.
        idempotency_key: what the writer called it; a model has one version of a key.
        directory: of the files, inside the registry.
        files: all of them, by path.
        metrics: further numbers that the writer recorded.
        config: the run's resolved configuration, where the writer gave it.
        created_at: UTC, ISO 8601.
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
            raise ContractError(f"a version has to lie inside the registry, got {self.name!r} in {self.directory!r}")

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def num_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasChange:
    """One move of an alias.

    Attributes:
        sequence: its place in the model's log of changes.
        kind: a rollback takes the last `set` back, which decides where the next rollback leads.
        previous: the version before; None where there was no such alias.
        by: user and machine.
        at: UTC, ISO 8601.
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
    """Versions that were given up: from then on they are no versions, and their files may go."""

    sequence: int
    versions: tuple[int, ...]
    by: str
    at: str
    kind: Literal["retire"] = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineState:
    """How a model stands after a change.

    Attributes:
        sequence: of that change; 0 before the first.
        aliases: version by alias.
        retired: versions that are no more.
    """

    sequence: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    retired: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """A change as it is written, with the state after it, so that the newest entry alone tells how things stand.

    Attributes:
        entry_id: random: tells a writer its own entry from another's.
    """

    entry_id: str
    change: AliasChange | Retirement
    state: LineState


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDifference:
    """Where two versions differ: what each has, by key. What they share is left out.

    Attributes:
        config: dotted settings; empty also where one of them recorded no configuration.
        evaluation: accuracy (mean@k) of each group and of `all`.
        files: SHA-256 of each side's file, None where there is none.
    """

    a: str
    b: str
    config: Mapping[str, tuple[Any, Any]]
    lineage: Mapping[str, tuple[Any, Any]]
    evaluation: Mapping[str, tuple[float | None, float | None]]
    files: Mapping[str, tuple[str | None, str | None]]


def difference(a: ModelVersion, b: ModelVersion) -> VersionDifference:
    """What tells one version from another, of one model or of two."""
    return VersionDifference(
        a=a.reference,
        b=b.reference,
        config=_different(_flat(a.config), _flat(b.config)) if a.config is not None and b.config is not None else {},
        lineage=_different(_flat(asdict(a.lineage)), _flat(asdict(b.lineage))),
        evaluation=_different(_accuracies(a.evaluation), _accuracies(b.evaluation)),
        files=_different({file.path: file.sha256 for file in a.files}, {file.path: file.sha256 for file in b.files}),
    )


def require_name(name: str, what: str) -> str:
    """Refuse a model's or alias's name that would be ambiguous, or lead out of the registry.

    Raises:
        RegistryError: what a name may look like.
    """
    if not _NAME.fullmatch(name) or name == LATEST or (what == "alias" and name.isdecimal()):
        raise RegistryError(
            f"{name!r} is no name for {'an alias' if what == 'alias' else 'a model'}: up to 63 lower-case letters, digits, dots, hyphens and underscores, "
            f"the first a letter or digit; not {LATEST!r}, and an alias is no number"
        )
    return name


def parse_reference(reference: str) -> tuple[str, str | None]:
    """Name and version (a number, an alias, or None) of `kk-student@3`, `kk-student@production`, `kk-student`.

    Raises:
        RegistryError: it is none.
    """
    name, at, ref = reference.partition("@")
    if at and not ref:
        raise RegistryError(
            f"expected a version or an alias after @, as kk-student@3 or kk-student@{PRODUCTION}; got {reference!r}"
        )
    return require_name(name, "model"), ref or None


def to_json(record: object) -> bytes:
    return TypeAdapter(type(record)).dump_json(record, indent=2)


def from_json(kind: type[_Record], content: bytes, where: str) -> _Record:
    """Read a record that is there as JSON.

    Raises:
        RegistryError: it is not one.
    """
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise RegistryError(
            f"{where} is not a {kind.__name__} as this version of rlad writes it: {place}: {first['msg']}"
        ) from error


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
