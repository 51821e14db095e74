"""Conditional creation of files: create a file only if it does not exist.

pyarrow's filesystems lack this operation, so each supported store has its own implementation:

- local: hard link to a complete temporary file, which fails if the name exists
- S3: PutObject with `If-None-Match: *` (boto3)
- GCS: upload with `ifGenerationMatch=0` (google-auth)

See docs/decisions/007-object-store-sdk.md for why these are three SDKs.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

from pyarrow import fs
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from rlad.errors import RegistryError
from rlad.integrity.durable import sync_directory

Create = Callable[[str, bytes], bool]
"""Creates a file atomically at a path. Returns False, without writing, if the file exists."""

TEMPORARY = ".creating-"
"""Prefix of temporary files on a local disk."""

_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S = 10.0, 60.0


def create_locally(path: str, content: bytes) -> bool:
    """Create a file on a local disk, durably. Returns False if it exists."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            target.hardlink_to(temporary)
        except FileExistsError:
            return False
        sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return True


class _BusyError(OSError):
    """A concurrent write to the same name is in progress; its outcome is not known yet."""


def s3(options: Mapping[str, str]) -> tuple[fs.FileSystem, Create]:
    """Return the filesystem and the conditional create of S3 or a compatible server.

    Args:
        options: `region`, `endpoint_override` (host:port) and `scheme`, all optional.

    Raises:
        RegistryError: boto3 is not installed.
    """
    # pyarrow and boto3 read credentials and region from the same sources.
    filesystem = fs.S3FileSystem(**options, connect_timeout=_CONNECT_TIMEOUT_S, request_timeout=_REQUEST_TIMEOUT_S)
    endpoint = options.get("endpoint_override")
    url = f"{options.get('scheme', 'https')}://{endpoint}" if endpoint else None
    return filesystem, _s3_create(filesystem.region, url)


def _s3_create(region: str, endpoint_url: str | None) -> Create:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise RegistryError("a registry on S3 requires boto3; install it with: pip install 'rlad[s3]'") from error

    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_REQUEST_TIMEOUT_S,
        retries={"mode": "standard", "max_attempts": 5},
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    client = boto3.client("s3", region_name=region, endpoint_url=endpoint_url, config=config)

    @retry(
        retry=retry_if_exception_type(_BusyError),
        stop=stop_after_delay(_REQUEST_TIMEOUT_S),
        wait=wait_random_exponential(0.05, max=2),
        reraise=True,
    )
    def create(path: str, content: bytes) -> bool:
        bucket, _, key = path.partition("/")
        try:
            client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*", ContentType="application/json")
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 412:
                return False
            raise (_BusyError if status == 409 else OSError)(str(error)) from error
        except BotoCoreError as error:
            raise OSError(str(error)) from error
        return True

    return create


def gcs(options: Mapping[str, str]) -> tuple[fs.FileSystem, Create]:
    """Return the filesystem and the conditional create of Google Cloud Storage or a compatible server.

    Args:
        options: `endpoint_override` (host:port), `scheme` and `anonymous` (`true`), all optional.

    Raises:
        RegistryError: google-auth is not installed.
    """
    is_anonymous = options.get("anonymous") == "true"
    scheme, endpoint = options.get("scheme", "https"), options.get("endpoint_override")
    filesystem = fs.GcsFileSystem(
        anonymous=is_anonymous,
        scheme=scheme,
        endpoint_override=endpoint,
        retry_time_limit=timedelta(seconds=_REQUEST_TIMEOUT_S),
    )
    return filesystem, _gcs_create(f"{scheme}://{endpoint or 'storage.googleapis.com'}", is_anonymous=is_anonymous)


def _gcs_create(base_url: str, *, is_anonymous: bool) -> Create:
    try:
        import google.auth
        import requests
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import AuthorizedSession
    except ImportError as error:
        raise RegistryError(
            "a registry on Google Cloud Storage requires google-auth; install it with: pip install 'rlad[gcs]'"
        ) from error

    def session() -> requests.Session:
        if is_anonymous:
            return requests.Session()
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])
        return AuthorizedSession(credentials)

    def create(path: str, content: bytes) -> bool:
        bucket, _, name = path.partition("/")
        try:
            with session() as http:
                response = http.post(
                    f"{base_url}/upload/storage/v1/b/{bucket}/o",
                    params={"uploadType": "media", "name": name, "ifGenerationMatch": "0"},
                    data=content,
                    headers={"Content-Type": "application/json"},
                    timeout=(_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S),
                )
                if response.status_code == requests.codes.precondition_failed:
                    return False
                response.raise_for_status()
        except (requests.RequestException, GoogleAuthError) as error:
            raise OSError(str(error)) from error
        return True

    return create
