"""Export of a version to a model repository of a hub: one commit with its files and model card, and a tag."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.governance.exports import Export, summary
from pipelines.governance.model_card import model_card
from rlad.credentials import redact
from rlad.errors import ConfigError, RegistryError
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import ModelVersion

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_CARD = "README.md"
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def export_to_hub(
    registry: ModelRegistry, version: ModelVersion, *, repository: str, is_public: bool, into: Path
) -> Export:
    """Commit a version to a repository, which is made if it does not exist, and tag the commit `v` and its number.

    Weights that the repository has and the version has not are deleted in the same commit. Other files stay.

    Args:
        registry: The registry.
        version: The version.
        repository: Repository, `OWNER/NAME`. Hub and token come from `HF_ENDPOINT` and `HF_TOKEN`.
        is_public: Whether the repository may be public. A new one is public then, and private otherwise.
        into: Directory for a copy of a model on an object store.

    Raises:
        ConfigError: The name of the repository is invalid.
        CorruptModelError: A file of the version differs from its manifest.
        RegistryError: The repository is public and must not be, the tag belongs to another model, or the hub refuses
            the version or does not answer.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    # The card and the errors tell the result. The library's progress bars and warnings would mix with the output.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    path = registry.verified_path(version.name, version.version, into)
    tag = f"v{version.version}"
    with _errors_of(repository, version):
        api = HfApi()
        api.create_repo(repository, private=not is_public, exist_ok=True)
        if not is_public and not api.repo_info(repository).private:
            raise RegistryError(
                f"{repository} is public: everyone would see {version.reference}. Pass --public if that is intended"
            )
        tagged = {each.name for each in api.list_repo_refs(repository).tags}
        if tag in tagged:
            _require_same_weights(api, repository, tag, version)
        files = {file.path for file in version.files}
        stale = [each for each in api.list_repo_files(repository) if each.endswith(_WEIGHTS) and each not in files]
        card = model_card(registry, version).encode()
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationDelete(path_in_repo=each) for each in stale),
                *(CommitOperationAdd(each, path / each) for each in sorted(files - {_CARD})),
                CommitOperationAdd(_CARD, card),
            ],
            commit_message=summary(version),
        )
        api.create_tag(repository, tag=tag, revision=commit.oid, exist_ok=True)
    return Export(target="hub", location=f"{repository}@{tag}", was_there=tag in tagged)


def _require_same_weights(api: HfApi, repository: str, tag: str, version: ModelVersion) -> None:
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(repository, recursive=True, revision=tag)
    there = {each.path: each.lfs.sha256 for each in tree if isinstance(each, RepoFile) and each.lfs is not None}
    ours = {file.path: file.sha256 for file in version.files if file.path.endswith(".safetensors")}
    if any(there.get(name) != sha256 for name, sha256 in ours.items()):
        raise RegistryError(
            f"{repository} has other weights at tag {tag} than {version.reference}: use a repository for each model"
        )


@contextmanager
def _errors_of(repository: str, version: ModelVersion) -> Iterator[None]:
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{repository!r} is no valid repository: {error}") from error
    except (HTTPError, OSError, OfflineModeIsEnabled, ValueError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        remedy = " Set HF_TOKEN to a token that may write to it." if status in (401, 403) else ""
        first_line = redact(str(error)).strip().splitlines()[:1] or [type(error).__name__]
        raise RegistryError(
            f"the hub does not take {version.reference} as {repository}: {first_line[0]}{remedy}"
        ) from error
