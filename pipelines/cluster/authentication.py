"""Check that this process and its Ray cluster agree on token authentication."""

from __future__ import annotations

import os

import grpc
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from rlad.errors import PlanError

_TIMEOUT_S = 5.0


def require_same_authentication() -> None:
    """Check that a process with a token has joined a cluster that uses it.

    Ray lets such a process join any cluster. One without tokens then takes the process for dead, because its calls are
    refused, and ends every actor of it ("The actor died unexpectedly").

    Raises:
        PlanError: This process uses a token, and the cluster that it has joined does not.
    """
    address = ray.get_runtime_context().gcs_address
    if _uses_token() and requires_token(address) is False:
        raise PlanError(
            f"the Ray cluster at {address} uses no token, but this process does: set RAY_AUTH_MODE=disabled here, or "
            "start every node of the cluster with RAY_AUTH_MODE=token (docs/how-to/cluster.md)"
        )


def token_remedy(address: str) -> str | None:
    """Return why a cluster refuses this process, and the remedy, if a token is the reason.

    Args:
        address: Address of the cluster, `HOST:PORT`.
    """
    if not requires_token(address):
        return None
    problem = "another one" if _uses_token() else "none"
    return (
        f"it requires a token, and this process has {problem}. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
        "file with the cluster's token (docs/how-to/cluster.md)"
    )


def requires_token(address: str) -> bool | None:
    """Return whether a cluster answers only to those who have its token; None if this is unknown.

    Args:
        address: Address of the cluster, `HOST:PORT`. Clusters that do not answer, or use TLS, are unknown.
    """
    with grpc.insecure_channel(address) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return True if error.code() == grpc.StatusCode.UNAUTHENTICATED else None
    return False


def _uses_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE") == "token"
