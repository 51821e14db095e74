"""File of published weights on a node, written from the objects of the publication."""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

from actors.messages import WeightsPublication
from actors.weights.distribution import fetch_in_turns
from actors.weights.node_file import DeltaChain, HeldFile, NodeWeights
from rlad.errors import EngineError, WeightsLostError
from rlad.weight_file import Bytes

# Deadline for the objects of a weight update to arrive on the node. The driver's own deadline of an update is shorter.
_FETCH_TIMEOUT_S = 600.0


def hold_published(weights: NodeWeights, publication: WeightsPublication) -> HeldFile:
    """Write published weights to the node's file, unless another worker has, and return it, locked.

    Only the objects that the file lacks are fetched: deltas, or the buckets of the full version and all deltas.

    Raises:
        EngineError: The published objects did not arrive in time.
        WeightsLostError: They no longer exist.
        WeightsMismatchError: A delta is corrupt or does not fit.
    """

    def fetch(places: Sequence[int]) -> list[list[Bytes]]:
        return _get(publication, [publication.buckets[place].ref for place in places])

    def fetch_deltas(first: int) -> list[list[Bytes]]:
        deltas = publication.deltas[first:]
        parts = iter(_get(publication, [ref for delta in deltas for ref in delta.refs]))
        return [[bucket for _ in delta.refs for bucket in next(parts)] for delta in deltas]

    chain = None
    if publication.deltas:
        chain = DeltaChain(checksums=publication.checksums, digests=publication.digests, fetch=fetch_deltas)
    return weights.hold(publication.manifest, [bucket.digest for bucket in publication.buckets], fetch, chain)


def _get(publication: WeightsPublication, refs: list[ray.ObjectRef]) -> list[list[Bytes]]:
    """Get published objects, mapped and not copied, in an order in which nodes pass them on to each other.

    Raises:
        EngineError: The published objects did not arrive in time.
        WeightsLostError: They no longer exist.
    """
    deadline = time.monotonic() + _FETCH_TIMEOUT_S

    def get(some: list[ray.ObjectRef]) -> Sequence[list[Bytes]]:
        found: list[list[Bytes]] = ray.get(some, timeout=max(0.0, deadline - time.monotonic()))
        return found

    try:
        return fetch_in_turns(refs, ray.get_runtime_context().get_node_id(), get)
    except GetTimeoutError as error:
        raise EngineError(
            f"weights of version {publication.manifest.version} did not arrive within {_FETCH_TIMEOUT_S:g} s"
        ) from error
    except ObjectLostError as error:
        raise WeightsLostError(
            f"weights of version {publication.manifest.version} were lost with the process that published them; "
            "publish them again"
        ) from error
