"""Fixtures of the unit tests: an S3 object store on loopback, for code that writes to one."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

_bucket_numbers = itertools.count()


class OneAtATime:
    """WSGI middleware that serves one request at a time.

    It makes conditional writes atomic, as in S3. moto alone checks the condition first and writes later, so that two
    concurrent writes can both succeed.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self._lock = application, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        with self._lock:
            return list(self._application(environ, start_response))


@pytest.fixture(autouse=True)
def _same_ray_authentication() -> Iterator[None]:
    """Fail a test that leaves the variable of Ray's token authentication changed: later tests could not start Ray.

    Ray sets it itself when it starts a cluster, and then knows of it.
    """
    before = os.environ.get("RAY_AUTH_MODE")
    yield
    assert os.environ.get("RAY_AUTH_MODE") == before


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Yield host:port of a moto server on loopback; its credentials are in the environment."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    settings = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    server = make_server("127.0.0.1", 0, OneAtATime(DomainDispatcherApplication(create_backend_app)), threaded=True)
    serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    serving.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    for key, value in before.items():
        if value is None:
            del os.environ[key]
        else:
            os.environ[key] = value


@pytest.fixture
def s3_uri(s3_endpoint: str) -> str:
    """Return the URI of a folder in an empty bucket."""
    import boto3

    bucket = f"bucket-{next(_bucket_numbers)}"
    boto3.client("s3", endpoint_url=f"http://{s3_endpoint}").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/team/registry?endpoint_override={s3_endpoint}&scheme=http"
