"""Data sets of the Hugging Face hub, read by the library `datasets`.

The library's variables apply: `HF_HOME` (cache), `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`. Code of a data set is
never executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlad.config.prompts import HubPrompts
from rlad.data.row_files import Location, Row, table_rows
from rlad.errors import ConfigError, DataError

_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRows:
    """Rows of a hub data set.

    Attributes:
        commit: Commit that the rows are of.
        rows: The rows in order.
    """

    commit: str
    rows: Iterator[Row]


def hub_rows(source: HubPrompts) -> HubRows:
    """Load a split of a hub data set. It is downloaded unless it is in the cache.

    Raises:
        ConfigError: The library `datasets` is not installed.
        DataError: The data set, configuration, split or revision does not exist, access is refused, the hub cannot be
            reached, or the files cannot be read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "hub data sets require the library datasets; install it with: pip install 'rlad[hub]'"
        ) from error
    with _explained(source):
        # The prefix keeps a local folder or file of the same name from being taken for the data set.
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{source.dataset}", source.config, revision=source.revision
        )
        if source.revision is not None and _is_commit(source.revision) and builder.hash != source.revision:
            builder = _cached(source, builder)
        builder.download_and_prepare()
        table = builder.as_dataset(split=source.split).with_format("arrow")
    batches = (batch for table_batch in table.iter(_BATCH_ROWS) for batch in table_batch.to_batches())
    rows = ((Location(source.label, unit, number), row) for unit, number, row in table_rows(batches))
    return HubRows(commit=str(builder.hash), rows=rows)


def _cached(source: HubPrompts, newest: Any) -> Any:
    """Return the builder of a commit in the cache.

    Without the hub, the library takes the newest commit, whichever is asked for.

    Raises:
        DataError: The commit is not in the cache.
    """
    from datasets.packaged_modules.cache.cache import Cache

    builder = Cache(
        repo_id=source.dataset,
        dataset_name=newest.dataset_name,
        config_name=newest.config.name,
        version=newest.config.version,
        hash=source.revision,
    )
    if not Path(builder.cache_dir).is_dir():
        raise DataError(
            f"{source.label}: the cache holds commit {newest.hash}, not {source.revision}, and the hub cannot be "
            "reached; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        )
    return builder


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)


@contextmanager
def _explained(source: HubPrompts) -> Iterator[None]:
    """Turn the errors of the library into a `DataError` with the remedy."""
    import httpx
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, RuntimeError, DatasetsError, httpx.HTTPError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source.label}: {_remedy(source, error)} ({_first_line(error)})") from error


def _remedy(source: HubPrompts, error: Exception) -> str:
    text, kind = f"{type(error).__name__}: {error}".lower(), type(error).__name__
    if "dataset scripts are no longer supported" in text or "trust_remote_code" in text:
        return "it is loaded by code of its own, which is not executed; use its parquet files, or another data set"
    if "gated" in text:
        return "access is restricted; accept its conditions on the hub, and set HF_TOKEN"
    if "revision" in text and ("doesn't exist" in text or "not found" in text):
        return f"it has no revision {source.revision!r}; give a branch, a tag or a commit"
    if "couldn't reach" in text or "offline" in text or isinstance(error, ConnectionError) or kind == "ConnectError":
        return (
            "the hub cannot be reached and the data set is not in the cache; check the network, HF_ENDPOINT and "
            "HF_HUB_OFFLINE"
        )
    if "config name is missing" in text or "builderconfig" in text or ("config" in text and "not found" in text):
        return "name one of its configurations with `config`"
    if "split" in text and ("unknown" in text or "bad split" in text):
        return "name one of its splits with `split`"
    if "doesn't exist on the hub" in text or "cannot be accessed" in text or "401" in text or "404" in text:
        return "it does not exist or is private; check the name, and set HF_TOKEN for a private one"
    return "it cannot be read"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
