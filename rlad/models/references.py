"""Model references: how a configuration names a model.

| reference | model |
| --- | --- |
| `models/mine`, `./mine`, `/models/mine` | Hugging Face model directory |
| `Qwen/Qwen3-0.6B`, `Qwen/Qwen3-0.6B@REVISION` | model of the Hugging Face Hub: a branch, tag or commit |
| `s3://bucket/folder`, `gs://bucket/folder` | folder of an object store |
| `registry:kk-student@production` | version of the model registry: an alias or a number |
| `starter:kk/student` | starter model that `rlad pretrain` makes |

A model location is a reference that names the same files on every node and at any time: an absolute directory, a
commit of the hub, a state of a folder (`s3://bucket/folder#DIGEST`), or a numbered version of a registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qsl, quote, urlsplit

from rlad.errors import PlanError
from rlad.registry.versions import LATEST, parse_reference
from rlad.starters.cache import PREFIX as STARTER_PREFIX

REGISTRY_PREFIX = "registry:"
DEFAULT_REVISION = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_HOSTS = ("huggingface.co/", "hf.co/")
_FORMS = "a model directory, OWNER/NAME[@REVISION], s3://... or gs://..., registry:MODEL@ALIAS, or starter:RECIPE/ROLE"


class ReferenceKind(Enum):
    """Kind of a model reference."""

    DIRECTORY = "directory"
    HUB = "hub"
    STORE = "store"
    REGISTRY = "registry"
    STARTER = "starter"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """A parsed model reference.

    Attributes:
        text: The reference as written.
        kind: Its kind.
        name: Directory, hub id, URI of the folder without its digest, model in the registry, or `RECIPE/ROLE`.
        revision: Revision of the hub (default `main`), digest of the folder, or version of the registry (default
            `latest`); None for a folder without a digest, a directory and a starter model.
        registry: URI of the registry, or None for the one that `RLAD_REGISTRY` names.
    """

    text: str
    kind: ReferenceKind
    name: str
    revision: str | None = None
    registry: str | None = None

    @property
    def is_commit(self) -> bool:
        """Whether a hub reference names a commit, which never changes."""
        return self.kind is ReferenceKind.HUB and _COMMIT.fullmatch(self.revision or "") is not None

    def at(self, revision: str) -> str:
        """Return the reference to another revision of the same model."""
        match self.kind:
            case ReferenceKind.HUB:
                return f"{self.name}@{revision}"
            case ReferenceKind.STORE:
                return f"{self.name}#{revision}"
            case ReferenceKind.REGISTRY:
                where = f"?in={quote(self.registry, safe='/:')}" if self.registry is not None else ""
                return f"{REGISTRY_PREFIX}{self.name}@{revision}{where}"
            case _:
                raise PlanError(f"{self.text} has no revisions")


def parse_model(text: str) -> ModelReference:
    """Parse a model reference without looking for the model.

    `OWNER/NAME` is a hub id here. `rlad.models.locations` prefers a directory of that name if there is one.

    Raises:
        PlanError: The text is no model reference.
        RegistryError: The name of a model in the registry is invalid.
    """
    if text.startswith(STARTER_PREFIX):
        return ModelReference(text=text, kind=ReferenceKind.STARTER, name=text.removeprefix(STARTER_PREFIX))
    if text.startswith(REGISTRY_PREFIX):
        return _registered(text)
    if "://" in text:
        return _folder(text)
    name, at, revision = text.partition("@")
    if _HUB_ID.fullmatch(name):
        if at and not revision:
            raise PlanError(f"expected a branch, tag or commit after @, for example {name}@main; got {text!r}")
        return ModelReference(text=text, kind=ReferenceKind.HUB, name=name, revision=revision or DEFAULT_REVISION)
    if not text:
        raise PlanError(f"a model is required: {_FORMS}")
    return ModelReference(text=text, kind=ReferenceKind.DIRECTORY, name=text)


def _folder(text: str) -> ModelReference:
    scheme, _, rest = text.partition("://")
    if scheme == "hf" or rest.startswith(_HUB_HOSTS):
        for host in _HUB_HOSTS:
            rest = rest.removeprefix(host)
        raise PlanError(f"a model of the hub is named OWNER/NAME[@REVISION], for example {rest}; got {text!r}")
    if scheme not in ("s3", "gs"):
        raise PlanError(f"expected {_FORMS}; got {text!r}")
    name, _, digest = text.partition("#")
    parts = urlsplit(name)
    if "@" in parts.netloc:
        raise PlanError(
            "the URI of a model must not contain credentials: provide them through the environment, a profile or the "
            "machine's role, as for the vendor's tools"
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise PlanError(f"expected {scheme}://BUCKET/FOLDER with the folder of the model; got {text!r}")
    return ModelReference(text=text, kind=ReferenceKind.STORE, name=name, revision=digest or None)


def _registered(text: str) -> ModelReference:
    reference, _, query = text.removeprefix(REGISTRY_PREFIX).partition("?")
    options = dict(parse_qsl(query))
    if unknown := options.keys() - {"in"}:
        raise PlanError(f"unknown option {min(unknown)!r} of {text!r}; expected registry:MODEL@ALIAS?in=REGISTRY")
    name, revision = parse_reference(reference)
    return ModelReference(
        text=text,
        kind=ReferenceKind.REGISTRY,
        name=name,
        revision=revision or LATEST,
        registry=options.get("in"),
    )
