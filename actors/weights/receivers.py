"""The rollout workers of one transfer, as the learner's rank 0 sees them.

Has the methods of vLLM's `VLLMWeightSyncClient`, by which vLLM's trainer engines drive whoever is to get weights: each calls all workers at once and waits
for all of them.
"""

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
# Once one worker has failed, how long the others may take to notice that the transfer has ended.
_GRACE_S = 10.0


class Receivers:
    """Every method but `require_alive` is one of the protocol."""

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
            workers: by name, in the order of their ranks.
            manifest: of the weights that they will get.
            processes_per_worker: that receive, its tensor-parallel ranks.
            timeout_s: deadline of each call.
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
        """Processes of the transfer's group: rank 0 is the learner's, behind it come the workers'."""
        return 1 + len(self._workers) * self._processes_per_worker

    def rank_offset(self, index: int) -> int:
        """Rank of the first process of the worker at this place."""
        return 1 + index * self._processes_per_worker

    def require_alive(self) -> None:
        """Find out who is gone before anybody waits for them in a collective.

        Raises:
            EngineError: somebody is; `failures` says who.
        """
        self._call_all(
            lambda _, worker: worker.version.remote(), what="say which weights it has", timeout_s=_ALIVE_TIMEOUT_S
        )

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Make all workers join. vLLM gives one rank offset for one engine: here each has its own."""

        def join(index: int, worker: ActorHandle) -> ObjectRef:
            place = {"rank_offset": self.rank_offset(index)} if "rank_offset" in init_info else {}
            return worker.join_transfer.remote(init_info | place)

        self._call_all(join, what="join", timeout_s=self._timeout_s)

    def start_weight_update(self) -> None:
        """A worker does all of an update in `update_weights`, so that it can refuse it before it has given up its weights."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Make all workers receive what the caller sends meanwhile.

        Raises:
            EngineError: not all of them report the weights that were to be sent; `failures` says who does not.
        """
        manifest = self._manifest

        def require_manifest(reported: Any) -> None:
            if reported != manifest:
                raise EngineError(f"it reports {reported}, it was sent {manifest}")

        self._call_all(
            lambda _, worker: worker.receive_weights.remote(update_info, manifest),
            what=f"receive version {manifest.version}",
            timeout_s=self._timeout_s,
            check=require_manifest,
        )

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing is left: see `start_weight_update`."""

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
                    else f"it did not {what} within {timeout_s:g} s"
                )
                self._fail(dict.fromkeys(names.values(), reason))
                break
            for ref in done:
                name = names.pop(ref)
                try:
                    check(ray.get(ref))
                except Exception as error:  # noqa: BLE001 - whatever it is, this worker does not have the weights
                    self._fail({name: str(as_rlad_error(error, who=name))})
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        if self.failures:
            raise EngineError("; ".join(f"{name}: {reason}" for name, reason in self.failures.items()))

    def _fail(self, reasons: Mapping[str, str]) -> None:
        for name, reason in reasons.items():  # told here too: where sending does not end, this process does
            logger.warning("weights=not_received worker=%s version=%d reason=%s", name, self._manifest.version, reason)
        is_first = not self.failures
        self.failures.update(reasons)
        if is_first and self.on_failure is not None:
            self.on_failure()
