"""A process that uses a token, and a cluster that does not, are told apart when they meet."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest

# Ray reads its authentication mode when it is imported, so that each mode needs a process of its own.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
MEMBER = """
import sys
import ray
from pipelines.cluster.connection import connected
from rlad.config import ClusterConfig
from rlad.errors import PlanError
try:
    with connected(ClusterConfig(address=sys.argv[1])):
        print("joined", ray.is_initialized())
except PlanError as error:
    print("refused", error, ray.is_initialized())
"""
TOKEN = secrets.token_hex(32)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    """These tests need no cluster in this process."""


@pytest.fixture(scope="module", params=["disabled", "token"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Mode and address of a cluster."""
    mode = str(request.param)
    head = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(mode)
    )
    assert head.stdout is not None
    yield mode, next(line.split()[1] for line in head.stdout if line.startswith("address"))
    head.communicate(timeout=120)


def environment(mode: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "RAY_AUTH_MODE": mode} | ({"RAY_AUTH_TOKEN": TOKEN} if mode == "token" else {})


def member(mode: str, address: str) -> str:
    """Join a cluster, and return what came of it."""
    command = [sys.executable, "-c", MEMBER, address]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(mode), timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_member_with_the_mode_of_the_cluster_joins(site: tuple[str, str]) -> None:
    mode, address = site
    assert "joined True" in member(mode, address)


def test_member_with_the_other_mode_is_refused_with_the_remedy(site: tuple[str, str]) -> None:
    mode, address = site
    other = "disabled" if mode == "token" else "token"
    remedy = "set RAY_AUTH_MODE=disabled" if mode == "disabled" else "Set RAY_AUTH_MODE=token"
    output = member(other, address)
    assert output.startswith("refused")
    assert remedy in output
    assert output.strip().endswith("False")
