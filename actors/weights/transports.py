"""The driver's end of the way of new weights: how a publication gets to the rollout workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from actors.experience.transfers import TransferOutcome
from actors.messages import WeightsPublication
from actors.remote_errors import as_rlad_error
from rlad.contracts import WeightsManifest
from rlad.errors import WeightsMismatchError

Delivery = Callable[[ActorHandle], Awaitable[WeightsManifest]]
"""To be called on each worker of a delivery: returns when it has the weights, with what it reports to have.

Raises:
    WeightsMismatchError: it does not have them, or others.
"""


class WeightTransport(Protocol):
    """Brings weights to workers.

    Attributes:
        name: as in `weights.transport`; decides how the workers' engines take them.
    """

    name: str

    def deliver(self, publication: WeightsPublication, workers: Mapping[str, ActorHandle]) -> Delivery:
        """Begin to give workers, by name, the same weights. Called in the driver's event loop; returns at once."""


class ObjectStoreTransport:
    """Every worker fetches the weights for itself."""

    name = "object_store"

    def deliver(self, publication: WeightsPublication, workers: Mapping[str, ActorHandle]) -> Delivery:
        async def load(worker: ActorHandle) -> WeightsManifest:
            try:
                reported: WeightsManifest = await worker.update_weights.remote(publication)
            except RayTaskError as error:
                raise as_rlad_error(error, who="a rollout worker") from error
            return reported

        return load


class LearnerTransport:
    """The learner sends the weights to all workers of a delivery at once; the broker tells it whom."""

    def __init__(self, name: str, broker: ActorHandle) -> None:
        self.name = name
        self._broker = broker

    def deliver(self, publication: WeightsPublication, workers: Mapping[str, ActorHandle]) -> Delivery:
        transfer = asyncio.ensure_future(self._transfer(publication.manifest.version, workers))
        # Looked at, though whoever waits for it may be gone by then.
        transfer.add_done_callback(lambda done: done.cancelled() or done.exception())
        names = {worker: name for name, worker in workers.items()}

        async def received(worker: ActorHandle) -> WeightsManifest:
            failures = await asyncio.shield(transfer)
            name, version = names[worker], publication.manifest.version
            if name in failures:
                raise WeightsMismatchError(failures[name])
            held = await worker.version.remote()
            if held != version:
                raise WeightsMismatchError(f"it was sent version {version} and holds {held}")
            return publication.manifest

        return received

    async def _transfer(self, version: int, workers: Mapping[str, ActorHandle]) -> dict[str, str]:
        """Why a worker does not have the weights, by its name. What is found missing before anything is sent does not keep the others from it.

        Raises:
            WeightsMismatchError: newer weights have been asked for meanwhile.
        """
        failures: dict[str, str] = {}
        while True:
            number = await self._broker.ask_transfer.remote(
                version, {name: worker for name, worker in workers.items() if name not in failures}
            )
            outcome: TransferOutcome | None = None
            while outcome is None:
                outcome = await self._broker.wait_transfer.remote(number)
            if outcome.state == "superseded":
                raise WeightsMismatchError(f"version {version} was not sent: there is a newer one")
            failures |= outcome.failures
            if outcome.state == "sent":
                return failures


def weight_transport(name: str, broker: ActorHandle) -> WeightTransport:
    """The transport of a run, by its `weights.transport`."""
    return ObjectStoreTransport() if name == ObjectStoreTransport.name else LearnerTransport(name, broker)
