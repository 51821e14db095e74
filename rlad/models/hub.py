"""Models of the Hugging Face Hub, by huggingface_hub with its cache and its environment variables.

`HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_TOKEN` have their usual meaning. The token stays in
the environment or in huggingface_hub's own file.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rlad.errors import AccessError, ModelUnreachableError, PlanError
from rlad.models.files import (
    CONFIGURATION_FILES,
    IGNORED_FILES,
    WEIGHT_FILES,
    OnBytes,
    missing_files,
    require_files,
)
from rlad.models.locks import locked
from rlad.models.references import ModelReference

_LOG = logging.getLogger(__name__)
# An attempt resumes by itself while bytes arrive. Finished files are kept between attempts.
_ATTEMPTS = 4


def commit_of(reference: ModelReference) -> str:
    """Return the commit of a hub model's revision, 40 hexadecimal digits.

    If the hub cannot be reached, this is the commit that the cache holds for the revision.

    Raises:
        AccessError: The hub refuses access.
        PlanError: The model or the revision does not exist.
        ModelUnreachableError: The hub cannot be reached, and the cache does not know the revision.
    """
    assert reference.revision is not None
    if reference.is_commit:
        return reference.revision
    from huggingface_hub import HfApi, constants

    is_offline = constants.is_offline_mode()
    with _errors_of(reference):
        revision = HfApi().resolve_revision(reference.name, revision=reference.revision, local_files_only=is_offline)
    return revision.resolved


def fetch_commit(reference: ModelReference, *, weights: bool, on_bytes: OnBytes | None = None) -> Path:
    """Return the directory of a commit in the cache, after downloading the files that it lacks.

    Args:
        reference: The model at a commit.
        weights: Whether weights are needed besides configuration and tokenizer.
        on_bytes: Progress of a download.

    Raises:
        AccessError: The hub refuses access.
        PlanError: The commit does not exist, or is no model with safetensors weights.
        ModelUnreachableError: The hub cannot be reached, and the cache does not hold the files.
    """
    from huggingface_hub import constants, snapshot_download

    if (found := _cached(reference, weights=weights)) is not None:
        return found
    options = _options(reference, weights=weights)
    with locked(Path(constants.HF_HUB_CACHE) / ".locks", f"rlad--{reference.name.replace('/', '--')}"):
        if (found := _cached(reference, weights=weights)) is not None:  # by another process on this node
            return found
        _LOG.info("model download started: repo=%s commit=%s weights=%s", reference.name, reference.revision, weights)
        with _errors_of(reference):
            for attempt in Retrying(
                stop=stop_after_attempt(_ATTEMPTS),
                wait=wait_random_exponential(0.5, max=10),
                retry=retry_if_exception(_is_interruption),
                reraise=True,
            ):
                with attempt:
                    directory = Path(snapshot_download(**options, tqdm_class=_bar_class(on_bytes)))
    return require_files(directory, reference.text, weights=weights)


def _options(reference: ModelReference, *, weights: bool) -> dict[str, Any]:
    return {
        "repo_id": reference.name,
        "revision": reference.revision,
        "allow_patterns": [*CONFIGURATION_FILES, *(WEIGHT_FILES if weights else ())],
        "ignore_patterns": list(IGNORED_FILES),
    }


def _cached(reference: ModelReference, *, weights: bool) -> Path | None:
    """Return the directory of a commit if the cache holds all files, without a request."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(**_options(reference, weights=weights), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise PlanError(f"{reference.text!r} is no valid hub id: {error}") from error
    # A cache that another program has filled has no list of the files, and huggingface_hub takes it as complete.
    return None if missing_files(directory, weights=weights) else directory


@contextmanager
def _errors_of(reference: ModelReference) -> Iterator[None]:
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RevisionResolutionError

    try:
        yield
    except HFValidationError as error:
        raise PlanError(f"{reference.text!r} is no valid hub id: {error}") from error
    except (HTTPError, OSError, RevisionResolutionError, OfflineModeIsEnabled) as error:
        _refuse(reference, error)


def _refuse(reference: ModelReference, error: Exception) -> NoReturn:
    """Raise the error of a failed request in terms of the reference, with its remedy."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name, revision, endpoint = reference.name, reference.revision, constants.ENDPOINT
    # Only whether there is a token, never the token itself.
    token = "the token of this machine may not read it" if get_token() else "this machine has no token"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError):
        raise AccessError(
            f"model {name} is gated, and {token}: accept its terms on {endpoint}/{name}, and set HF_TOKEN to a token "
            "of that account on every node that loads the model"
        ) from error
    if isinstance(error, RevisionNotFoundError):
        raise PlanError(
            f"model {name} has no revision {revision!r}: expected a branch, a tag or a commit of {endpoint}/{name}"
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        raise PlanError(
            f"no model {name!r}: there is no such directory, and {endpoint} has no such model, or it is private and "
            f"{token} (HF_TOKEN)"
        ) from error
    if status in (401, 403):
        raise AccessError(
            f"{endpoint} refused access to model {name} (status {status}), and {token}: set HF_TOKEN to a valid token"
        ) from error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise PlanError(
            f"no space left in {constants.HF_HUB_CACHE} for model {name}: free some, or set HF_HOME to another disk"
        ) from error
    wanted = name if revision is None else f"{name}@{revision}"
    if constants.is_offline_mode():
        raise ModelUnreachableError(
            f"model {wanted} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it: "
            f"run `hf download {name}` where there is a network, with HF_HOME on storage that this machine sees"
        ) from error
    raise ModelUnreachableError(
        f"model {wanted} is neither a directory nor in the cache {constants.HF_HUB_CACHE}, and the download from "
        f"{endpoint} failed ({_summary(error)}): try again, finished files are kept; HF_ENDPOINT sets another server"
    ) from error


def _is_interruption(error: BaseException) -> bool:
    """Return whether a download broke off, so that another attempt can finish it."""
    from httpx2 import TransportError

    return isinstance(error, TransportError) or "Consistency check failed" in str(error)


def _summary(error: Exception) -> str:
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    # Addresses of downloads can carry signatures in their queries.
    first_line = re.sub(r"\?\S+", "?...", next(iter(str(causes[-1]).splitlines()), ""))
    return f"{type(causes[-1]).__name__}: {first_line}" if first_line else type(causes[-1]).__name__


def _bar_class(on_bytes: OnBytes | None) -> type:
    """Return a progress bar that shows nothing, and reports the bytes written to disk."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts = str(kwargs.get("desc", "")).startswith("Reconstructing")
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self._counts and on_bytes is not None:
                on_bytes(int(self.n), None if self.total is None else int(self.total))

    return Bar
