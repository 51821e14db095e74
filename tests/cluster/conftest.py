"""One local Ray for all tests of a file; each test releases the resources that it reserves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from actors.controller import NAMESPACE


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", namespace=NAMESPACE
    )
    yield
    ray.shutdown()
