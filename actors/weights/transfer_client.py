"""Client for the rollout workers of one transfer, used by learner rank 0."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from actors.remote_errors import as_rlad_error
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError

logger = logging.getLogger(__name__)

_ALIVE_TIMEOUT_S = 30.0
# Time that the remaining workers of a transfer have to end their call after one worker failed.
_GRACE_S = 10.0


class RayTransferClient:
    """Client with the methods of vLLM's `VLLMWeightSyncClient`, which vLLM's trainer engines call.

    Each method calls all workers of the transfer at once and waits for all of them. `require_alive` is an addition to
    vLLM's protocol.

    Attributes:
        failures: Error message of each worker that failed, by worker name.
        on_failure: Called once, when the first worker fails, in the thread that waits for the workers.
    """

    def __init__(
        self,
        workers: Mapping[str, ActorHandle],
        *,
        manifest: WeightsManifest,
        processes_per_worker: int,
        timeout_s: float,
    ) -> None:
        """
        Args:
            workers: Rollout workers by name, in the order of their ranks.
            manifest: Manifest of the weights to transfer.
            processes_per_worker: Engine processes of a worker, its tensor-parallel size.
            timeout_s: Timeout of each call, seconds.
        """
        self.failures: dict[str, str] = {}
        self.on_failure: Callable[[], None] | None = None
        self._workers = workers
        self._manifest = manifest
        self._processes_per_worker = processes_per_worker
        self._timeout_s = timeout_s

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._workers)

    @property
    def world_size(self) -> int:
        """Number of processes in the transfer's process group: the learner's rank 0, then those of the workers."""
        return 1 + len(self._workers) * self._processes_per_worker

    def rank_offset(self, index: int) -> int:
        """Return the rank of the first process of a worker, given by its position in `names`."""
        return 1 + index * self._processes_per_worker

    def require_alive(self) -> None:
        """Check that every worker answers, before any process waits for it in a collective.

        Raises:
            EngineError: At least one worker does not answer; `failures` lists them.
        """
        self._call_all(
            lambda _, worker: worker.version.remote(), what="report its policy version", timeout_s=_ALIVE_TIMEOUT_S
        )

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Make all workers join the process group.

        vLLM passes one rank offset, since it expects a single engine. Each worker gets its own offset here.
        """

        def join(index: int, worker: ActorHandle) -> ObjectRef:
            offset = {"rank_offset": self.rank_offset(index)} if "rank_offset" in init_info else {}
            return worker.join_transfer.remote(init_info | offset)

        self._call_all(join, what="join", timeout_s=self._timeout_s)

    def start_weight_update(self) -> None:
        """Do nothing. A worker updates in `update_weights` only, so it can refuse before it discards its weights."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Make all workers receive the tensors that the caller sends at the same time.

        Raises:
            EngineError: At least one worker does not report the manifest of the transfer; `failures` lists them.
        """
        manifest = self._manifest

        def require_manifest(reported: Any) -> None:
            if reported != manifest:
                raise EngineError(f"the worker reports {reported}; expected {manifest}")

        self._call_all(
            lambda _, worker: worker.receive_weights.remote(update_info, manifest),
            what=f"receive version {manifest.version}",
            timeout_s=self._timeout_s,
            check=require_manifest,
        )

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Do nothing, see `start_weight_update`."""

    def _call_all(
        self,
        call: Callable[[int, ActorHandle], ObjectRef],
        *,
        what: str,
        timeout_s: float,
        check: Callable[[Any], None] = lambda _: None,
    ) -> None:
        names = {call(index, worker): name for index, (name, worker) in enumerate(self._workers.items())}
        deadline = time.monotonic() + timeout_s
        while names:
            done, _ = ray.wait(list(names), timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                reason = (
                    "another worker of the transfer failed"
                    if self.failures
                    else f"the worker did not {what} within {timeout_s:g} s"
                )
                self._fail(dict.fromkeys(names.values(), reason))
                break
            for ref in done:
                name = names.pop(ref)
                try:
                    check(ray.get(ref, timeout=timeout_s))  # it is ready
                except Exception as error:  # noqa: BLE001 - after any error this worker does not have the weights
                    self._fail({name: str(as_rlad_error(error, who=name))})
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        if self.failures:
            raise EngineError("; ".join(f"{name}: {reason}" for name, reason in self.failures.items()))

    def _fail(self, reasons: Mapping[str, str]) -> None:
        # Logged here as well as raised: a transfer that does not end also ends this process, and the error with it.
        for name, reason in reasons.items():
            logger.warning("weights=not_received worker=%s version=%d reason=%s", name, self._manifest.version, reason)
        is_first = not self.failures
        self.failures.update(reasons)
        if is_first and self.on_failure is not None:
            self.on_failure()
