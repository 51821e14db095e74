"""Weight publishers: the learner side of a weight update, through the object store or by direct transfer.

A publisher runs on every learner rank. With direct transfers the weights must still exist when a worker requests them,
so the ranks poll for transfer requests after each publication, before each batch shard and until the run is dismissed.
The ranks train between those polls. A step has a single weight update, after its last shard, so within a step every
transfer carries the version that the step started with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray.util
import torch.distributed as dist

from actors.engines.zero_engine.trainer import ZeroTrainer
from actors.engines.zero_engine.weight_source import WeightSource
from actors.experience.broker import ExperienceBroker
from actors.experience.transfers import TransferOutcome, TransferRequest
from actors.learner.broker_link import BrokerLink
from actors.learner.collectives import agree_on_success, broadcast_from_first
from actors.learner.settings import LearnerSettings
from actors.messages import WeightsPublication
from actors.weights.publish import DeltaPublisher
from actors.weights.transfer_client import RayTransferClient
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError
from rlad.weight_file import layout_checksum

logger = logging.getLogger(__name__)

Announce = Callable[[list[WeightsPublication]], None]
"""Announces a publication to the broker. Called on rank 0 only.

The publication is wrapped in a list because Ray resolves a top-level object reference in the arguments of a call.
"""

_POLL_AGAIN, _TRANSFER, _CONTINUE = range(3)


class WeightPublisher(Protocol):
    """Learner side of a weight transport. All methods are collective."""

    def publish(self, version: int, announce: Announce) -> float:
        """Publish the current weights as a policy version and announce them. Return the seconds spent on transfers."""

    def before_shard(self, step: int, index: int) -> float:
        """Serve transfer requests until a batch shard can be claimed. Return the seconds spent on transfers."""

    def until_dismissed(self, version: int) -> None:
        """Keep the weights available until the driver dismisses the learner."""


def open_weight_publisher(settings: LearnerSettings, trainer: ZeroTrainer, broker: BrokerLink) -> WeightPublisher:
    """Return the publisher for the configured transport."""
    if settings.transport == "object_store":
        return ObjectStorePublisher(trainer, broker, full_every=settings.full_every)
    return TransferPublisher(
        settings.transport,
        trainer.weight_source(),
        broker,
        processes_per_worker=settings.engine_processes,
        timeout_s=settings.transfer_timeout_s,
    )


class ObjectStorePublisher:
    """Publisher that gathers the weights on rank 0 and puts them into the object store."""

    def __init__(self, trainer: ZeroTrainer, broker: BrokerLink, *, full_every: int) -> None:
        self._trainer = trainer
        self._broker = broker
        self._publisher = DeltaPublisher(full_every)

    def publish(self, version: int, announce: Announce) -> float:
        weights = self._trainer.gather_weights()

        def publish_and_announce() -> None:
            if weights is not None:
                announce([self._publisher.publish(weights, version)])

        agree_on_success(publish_and_announce)
        return 0.0

    def before_shard(self, step: int, index: int) -> float:
        return 0.0

    def until_dismissed(self, version: int) -> None:
        """Keep this process alive: Ray drops objects together with the process that created them.

        Workers may still be loading the last version, and workers that join late will load it. Every rank polls the
        broker by itself, because an evaluation may take longer than the timeout of a collective.
        """

        def wait() -> None:
            while not self._broker.call(ExperienceBroker.wait_dismissed):
                pass

        agree_on_success(wait)


class TransferPublisher:
    """Publisher that transfers the weights directly to rollout workers, through vLLM's weight transfer."""

    def __init__(
        self,
        transport: str,
        weights: WeightSource,
        broker: BrokerLink,
        *,
        processes_per_worker: int,
        timeout_s: float,
    ) -> None:
        """
        Args:
            transport: `nccl`, `ipc` or `gloo`.
            weights: Weight source. Each pass yields the weights as they are at that moment.
            broker: Link to the experience broker, which queues the driver's transfer requests.
            processes_per_worker: Engine processes of a rollout worker, its tensor-parallel size.
            timeout_s: Timeout of each call to the workers of a transfer, seconds.
        """
        # Imports vLLM, which the learner of a run with another transport does not need.
        from actors.engines.vllm_engine.weight_sending import TransferSession

        self._weights = weights
        self._broker = broker
        self._processes_per_worker = processes_per_worker
        self._timeout_s = timeout_s
        self._is_first = dist.get_rank() == 0
        self._session = TransferSession(transport, weights, address=ray.util.get_node_ip_address(), timeout_s=timeout_s)

    def publish(self, version: int, announce: Announce) -> float:
        """Announce a version and transfer it. Returns when each requested worker has it or has failed."""
        if self._is_first:
            publication = WeightsPublication(manifest=self._manifest(version))
        agree_on_success(lambda: announce([publication]) if self._is_first else None)
        return self._serve(version, lambda: self._broker.call(ExperienceBroker.transfer_or_delivered, version))

    def before_shard(self, step: int, index: int) -> float:
        return self._serve(step, lambda: self._broker.call(ExperienceBroker.transfer_or_shard, step, step, index))

    def until_dismissed(self, version: int) -> None:
        self._serve(version, lambda: self._broker.call(ExperienceBroker.transfer_or_dismissed, version))

    def _serve(self, held: int, poll: Callable[[], Any]) -> float:
        """Serve transfer requests until the broker reports other work. Return the seconds spent on transfers.

        Args:
            held: Policy version of the current weights.
            poll: Long poll of the broker, called on rank 0. It answers with a `TransferRequest`, with true when the
                ranks must continue, or with a false value when the poll timed out.
        """
        spent_s = 0.0
        while True:
            request: TransferRequest | bool | None = agree_on_success(lambda: poll() if self._is_first else None)
            decision = broadcast_from_first(
                _TRANSFER if isinstance(request, TransferRequest) else _CONTINUE if request else _POLL_AGAIN
            )
            if decision == _CONTINUE:
                return spent_s
            if decision == _TRANSFER:
                started = time.monotonic()
                self._transfer(request if isinstance(request, TransferRequest) else None, held)
                spent_s += time.monotonic() - started

    def _transfer(self, request: TransferRequest | None, held: int) -> None:
        """Transfer the weights to the workers of a request. Failed workers are reported and do not end the learner.

        Args:
            request: On rank 0; the other ranks pass None and take part in the gathers.
            held: Policy version of the current weights.
        """
        client = None
        if request is not None:
            client = RayTransferClient(
                request.workers,
                manifest=self._manifest(held),
                processes_per_worker=self._processes_per_worker,
                timeout_s=self._timeout_s,
            )
        is_connected = broadcast_from_first(int(agree_on_success(lambda: self._is_connected(request, client))))
        if not is_connected:
            return
        if request is None or client is None:
            agree_on_success(self._walk)
            return
        agree_on_success(lambda: self._send(request, client))

    def _is_connected(self, request: TransferRequest | None, client: RayTransferClient | None) -> bool:
        if request is None or client is None:
            return False
        try:
            client.require_alive()
            self._session.connect(client)
        except EngineError as error:
            logger.warning("weights=not_sent reason=%s", error)
            failures = client.failures or dict.fromkeys(client.names, str(error))
            self._report(request, TransferOutcome(state="not_sent", failures=failures))
            return False
        self._broker.call(ExperienceBroker.begin_transfer, request.number)
        return True

    def _send(self, request: TransferRequest, client: RayTransferClient) -> None:
        failures: dict[str, str] = {}
        try:
            self._session.send(client)
        except EngineError as error:
            logger.warning("weights=not_sent reason=%s", error)
            failures = client.failures or dict.fromkeys(client.names, str(error))
        self._report(request, TransferOutcome(state="sent", failures=failures))

    def _walk(self) -> None:
        for _ in self._weights:
            pass

    def _report(self, request: TransferRequest, outcome: TransferOutcome) -> None:
        self._broker.call(ExperienceBroker.report_transfer, request.number, outcome)

    def _manifest(self, version: int) -> WeightsManifest:
        layouts = self._weights.layouts()
        checksum = layout_checksum(
            [layout.name for layout in layouts],
            [layout.dtype_name for layout in layouts],
            [layout.shape for layout in layouts],
        )
        return WeightsManifest(
            version=version, checksum=checksum, num_bytes=sum(layout.num_bytes for layout in layouts)
        )
