"""Weight transports: how a publication reaches the rollout workers. Used by the driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from actors.experience.transfers import TransferOutcome
from actors.messages import WeightsPublication
from actors.remote_errors import as_rlad_error, reason_of
from rlad.contracts import WeightsManifest
from rlad.errors import BrokerRestartedError, WeightsMismatchError

logger = logging.getLogger(__name__)

# Time for a broker that has died to be restarted, and the pause between two attempts.
_RESTART_TIMEOUT_S = 180.0
_RESTART_PAUSE_S = 0.2

# Deadline of a call to the broker, which ends a long poll after 10 s.
_BROKER_TIMEOUT_S = 60.0

WeightUpdate = Callable[[ActorHandle], Awaitable[WeightsManifest]]
"""Weight update of a set of workers. Call it once for each worker; it returns the manifest that the worker reports.

Raises:
    WeightsMismatchError: The worker does not hold the published weights.
"""


class WeightTransport(Protocol):
    """Transport of publications to rollout workers.

    Attributes:
        name: Value of `weights.transport`. It selects how the engines of the workers load weights.
    """

    name: str

    def start_update(self, publication: WeightsPublication, workers: Mapping[str, ActorHandle]) -> WeightUpdate:
        """Start the weight update of workers, given by name. Called in the driver's event loop; returns at once."""


class ObjectStoreTransport:
    """Transport through Ray's object store. Every worker fetches the weights by itself."""

    name = "object_store"

    def start_update(self, publication: WeightsPublication, workers: Mapping[str, ActorHandle]) -> WeightUpdate:
        async def update(worker: ActorHandle) -> WeightsManifest:
            try:
                # unlimited wait: the pool has the deadline of an update
                reported: WeightsManifest = await worker.update_weights.remote(publication)
            except RayTaskError as error:
                raise as_rlad_error(error, who="a rollout worker") from error
            return reported

        return update


class LearnerTransport:
    """Transport by direct transfer from the learner. The broker passes the transfer request to the learner."""

    def __init__(self, name: str, broker: ActorHandle) -> None:
        self.name = name
        self._broker = broker

    def start_update(self, publication: WeightsPublication, workers: Mapping[str, ActorHandle]) -> WeightUpdate:
        transfer = asyncio.ensure_future(self._transfer(publication.manifest.version, workers))
        # Retrieve the exception even if no caller awaits the transfer any more; asyncio would log it otherwise.
        transfer.add_done_callback(lambda done: done.cancelled() or done.exception())
        names = {worker: name for name, worker in workers.items()}

        async def update(worker: ActorHandle) -> WeightsManifest:
            failures = await asyncio.shield(transfer)
            name, version = names[worker], publication.manifest.version
            if name in failures:
                raise WeightsMismatchError(failures[name])
            held = await worker.version.remote()  # unlimited wait: the pool has the deadline of an update
            if held != version:
                raise WeightsMismatchError(f"expected version {version} after the transfer; the worker holds {held}")
            return publication.manifest

        return update

    async def _transfer(self, version: int, workers: Mapping[str, ActorHandle]) -> dict[str, str]:
        """Transfer a version to workers. Return the reason of each worker that does not have it, by worker name.

        A worker that is found dead before the transfer begins is dropped, and the transfer is requested again for the
        others. It is also requested again, for all workers, from a broker that was restarted.

        Raises:
            WeightsMismatchError: A newer version was requested before this one was sent.
        """
        failures: dict[str, str] = {}
        clock = asyncio.get_running_loop().time
        deadline = clock() + _RESTART_TIMEOUT_S
        while True:
            receivers = {name: worker for name, worker in workers.items() if name not in failures}
            try:
                outcome = await self._request(version, receivers)
            except (RayActorError, BrokerRestartedError) as error:
                if clock() > deadline:
                    raise WeightsMismatchError(f"version {version} was not sent: {reason_of(error)}") from error
                logger.warning("weights=requested_again version=%d reason=%s", version, reason_of(error))
                await asyncio.sleep(_RESTART_PAUSE_S)
                continue
            if outcome.state == "superseded":
                raise WeightsMismatchError(f"version {version} was not sent because a newer version was requested")
            failures |= outcome.failures
            if outcome.state == "sent":
                return failures

    async def _request(self, version: int, workers: Mapping[str, ActorHandle]) -> TransferOutcome:
        async with asyncio.timeout(_BROKER_TIMEOUT_S):
            number = await self._broker.ask_transfer.remote(version, workers)
        outcome: TransferOutcome | None = None
        while outcome is None:
            async with asyncio.timeout(_BROKER_TIMEOUT_S):
                outcome = await self._broker.wait_transfer.remote(number)
        return outcome


def weight_transport(name: str, broker: ActorHandle) -> WeightTransport:
    """Return the transport for a value of `weights.transport`."""
    return ObjectStoreTransport() if name == ObjectStoreTransport.name else LearnerTransport(name, broker)
