"""The learner's end of the way of new weights, on every rank: into the object store, or straight to the workers that the driver names.

Weights that are sent have to be there when they are asked for: so the ranks look for requests behind every version, before every part and at the end, and
train on in between. A step's only update comes behind its last part, so all the while they hold the version that the step began with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray.util
import torch.distributed as dist
from ray.actor import ActorHandle

from actors.engines.zero_engine.trainer import ZeroTrainer
from actors.engines.zero_engine.weight_source import StudentWeights
from actors.experience.transfers import TransferOutcome, TransferRequest
from actors.learner.collectives import answer, decided_by_first, together
from actors.learner.settings import LearnerSettings
from actors.messages import WeightsPublication
from actors.weights.publish import publish
from actors.weights.receivers import Receivers
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError
from rlad.weight_file import layout_checksum

logger = logging.getLogger(__name__)

Tell = Callable[[list[WeightsPublication]], None]
"""Tells the broker of published weights, in a list so that the reference inside travels as a reference. On rank 0."""

_NOTHING_YET, _SEND, _GO_ON = range(3)


class WeightPublisher(Protocol):
    """All methods are collective."""

    def publish(self, version: int, tell: Tell) -> float:
        """Make the present weights available as this version, and tell of them. Returns the seconds that were spent on sending them."""

    def before_shard(self, step: int, index: int) -> float:
        """Called before a part of a step is claimed. Returns the seconds that were spent on sending weights."""

    def until_dismissed(self, version: int) -> None:
        """Keep the weights available until the driver needs them no more."""


def open_weight_publisher(settings: LearnerSettings, trainer: ZeroTrainer) -> WeightPublisher:
    """The learner's end of the configured transport."""
    if settings.transport == "object_store":
        return ObjectStorePublisher(trainer, settings.broker)
    return TransferPublisher(
        settings.transport,
        trainer.student_weights(),
        settings.broker,
        processes_per_worker=settings.engine_processes,
        timeout_s=settings.transfer_timeout_s,
    )


class ObjectStorePublisher:
    """Gathers the weights on rank 0 and puts them into the object store."""

    def __init__(self, trainer: ZeroTrainer, broker: ActorHandle) -> None:
        self._trainer = trainer
        self._broker = broker
        self._newest: WeightsPublication | None = None

    def publish(self, version: int, tell: Tell) -> float:
        weights = self._trainer.gather_weights()

        def publish_and_tell() -> None:
            if weights is not None:
                self._newest = publish(weights, version, earlier=self._newest)
                tell([self._newest])

        together(publish_and_tell)
        return 0.0

    def before_shard(self, step: int, index: int) -> float:
        return 0.0

    def until_dismissed(self, version: int) -> None:
        """Samplers may still be loading the last weights, and one that joins late will: Ray drops them with the process that published them.

        Every rank asks for itself: how long an evaluation takes is no business of a collective's deadline.
        """

        def wait() -> None:
            while not answer(self._broker.wait_dismissed.remote(), "the broker (wait_dismissed)"):
                pass

        together(wait)


class TransferPublisher:
    """Sends the weights, by vLLM's weight transfer."""

    def __init__(
        self,
        transport: str,
        weights: StudentWeights,
        broker: ActorHandle,
        *,
        processes_per_worker: int,
        timeout_s: float,
    ) -> None:
        """
        Args:
            weights: as they are whenever they are walked.
            processes_per_worker: of an engine, that receive.
            timeout_s: deadline of a transfer.
        """
        # With it comes vLLM, which no other run needs in its learner.
        from actors.engines.vllm_engine.weight_sending import WeightSender

        self._weights = weights
        self._broker = broker
        self._processes_per_worker = processes_per_worker
        self._timeout_s = timeout_s
        self._is_first = dist.get_rank() == 0
        self._sender = WeightSender(transport, weights, address=ray.util.get_node_ip_address(), timeout_s=timeout_s)

    def publish(self, version: int, tell: Tell) -> float:
        """Tell of the weights, and send them before they change: returns when all who were asked for have them or have failed."""
        if self._is_first:
            publication = WeightsPublication(manifest=self._manifest(version))
        together(lambda: tell([publication]) if self._is_first else None)
        return self._serve(version, lambda: self._broker.transfer_or_delivered.remote(version))

    def before_shard(self, step: int, index: int) -> float:
        return self._serve(step, lambda: self._broker.transfer_or_shard.remote(step, step, index))

    def until_dismissed(self, version: int) -> None:
        self._serve(version, lambda: self._broker.transfer_or_dismissed.remote(version))

    def _serve(self, held: int, ask: Callable[[], Any]) -> float:
        """Send to whom the driver asks, until the broker says that there is something else to do. Returns the seconds spent on sending."""
        spent_s = 0.0
        while True:
            request: TransferRequest | bool | None = together(
                lambda: answer(ask(), "the broker (transfers)") if self._is_first else None
            )
            turn = decided_by_first(
                _SEND if isinstance(request, TransferRequest) else _GO_ON if request else _NOTHING_YET
            )
            if turn == _GO_ON:
                return spent_s
            if turn == _SEND:
                started = time.monotonic()
                self._transfer(request if isinstance(request, TransferRequest) else None, held)
                spent_s += time.monotonic() - started

    def _transfer(self, request: TransferRequest | None, held: int) -> None:
        """Rank 0 has the request, the others gather with it. That workers fail is the driver's business, and nothing here ends for it."""
        receivers = None
        if request is not None:
            receivers = Receivers(
                request.workers,
                manifest=self._manifest(held),
                processes_per_worker=self._processes_per_worker,
                timeout_s=self._timeout_s,
            )
        is_connected = decided_by_first(int(together(lambda: self._is_connected(request, receivers))))
        if not is_connected:
            return
        if request is None or receivers is None:
            together(self._walk)
            return
        together(lambda: self._send(request, receivers))

    def _is_connected(self, request: TransferRequest | None, receivers: Receivers | None) -> bool:
        if request is None or receivers is None:
            return False
        try:
            receivers.require_alive()
            self._sender.connect(receivers)
        except EngineError as error:
            logger.warning("weights=not_sent reason=%s", error)
            failures = receivers.failures or dict.fromkeys(receivers.names, str(error))
            self._report(request, TransferOutcome(state="not_sent", failures=failures))
            return False
        answer(self._broker.begin_transfer.remote(request.number), "the broker (begin_transfer)")
        return True

    def _send(self, request: TransferRequest, receivers: Receivers) -> None:
        failures: dict[str, str] = {}
        try:
            self._sender.send(receivers)
        except EngineError as error:
            logger.warning("weights=not_sent reason=%s", error)
            failures = receivers.failures or dict.fromkeys(receivers.names, str(error))
        self._report(request, TransferOutcome(state="sent", failures=failures))

    def _walk(self) -> None:
        for _ in self._weights:
            pass

    def _report(self, request: TransferRequest, outcome: TransferOutcome) -> None:
        answer(self._broker.report_transfer.remote(request.number, outcome), "the broker (report_transfer)")

    def _manifest(self, version: int) -> WeightsManifest:
        layouts = self._weights.layouts()
        checksum = layout_checksum(
            [each.name for each in layouts], [each.dtype_name for each in layouts], [each.shape for each in layouts]
        )
        return WeightsManifest(version=version, checksum=checksum, num_bytes=sum(each.num_bytes for each in layouts))
