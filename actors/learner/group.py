"""Driver's side of the learner: ranks that Ray Train starts, watches and restarts from the last checkpoint."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import Future
from typing import Any

from ray.train import CheckpointConfig, FailureConfig, ScalingConfig, get_context
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from actors.engines.devices import hide_gpus
from actors.health.processes import announce, withdraw
from actors.learner.checkpoints import drop_unusable_list
from actors.learner.settings import CHECKPOINTS, LearnerSettings
from actors.remote_errors import as_rlad_error
from rlad.config import LearnerConfig
from rlad.errors import EngineError, RladError

logger = logging.getLogger(__name__)


# Time for ranks to end after a stop. They notice it at their next claim, that is within a micro-batch.
_CLOSE_TIMEOUT_S = 60.0


def train_loop(train_loop_config: dict[str, LearnerSettings]) -> RladError | None:
    """Train on one rank. Ray Train calls this on every rank.

    Returns:
        The error on which all ranks agreed to end the run, or None when training is complete. The error is returned
        because Ray Train would restart the ranks if it were raised.
    """
    settings = train_loop_config["settings"]
    if not settings.learner.gpus_per_rank:
        hide_gpus()
    if settings.run_id is not None:
        announce(settings.run_id, f"learner-{get_context().get_world_rank()}", role="learner")
    # Imported here so that only ranks import DeepSpeed, not the driver.
    from actors.learner.collectives import AgreedError
    from actors.learner.rank import LearnerRank

    try:
        LearnerRank(settings).run()
    except AgreedError as agreed:
        return agreed.error
    finally:
        if settings.run_id is not None:
            withdraw(settings.run_id)
    return None


class LearnerGroup:
    """Runs the learner in a thread of the driver and reports how it ended.

    If a rank dies, Ray Train restarts all ranks from the newest checkpoint, up to `learner.max_restarts` times, and
    they claim the same batch shards again. A new driver on the same run directory continues from that checkpoint too.
    """

    def __init__(self, settings: LearnerSettings, *, run_id: str) -> None:
        """
        Args:
            settings: Settings of the ranks.
            run_id: Name of the run in logs.
        """
        drop_unusable_list(settings.run_dir / CHECKPOINTS)
        self._trainer = _torch_trainer(settings)
        self._run_id = run_id
        self._ended: Future[None] = Future()

    def start(self) -> None:
        """Start the ranks and return at once. They report to the broker when they are ready."""
        threading.Thread(target=self._fit, name=f"learner-{self._run_id}", daemon=True).start()

    async def wait(self) -> None:
        """Return when the student is trained and exported.

        Raises:
            RladError: The reason why training ended early.
        """
        ended = asyncio.wrap_future(self._ended)
        # Retrieve the exception even if the waiter has gone, so that asyncio does not report it as never retrieved.
        ended.add_done_callback(lambda future: future.cancelled() or future.exception())
        await asyncio.shield(ended)

    def failure(self) -> BaseException | None:
        """Return the error that ended the learner; None while it runs and after it has finished."""
        return self._ended.exception() if self._ended.done() else None

    async def close(self) -> None:
        """Wait until ranks that the broker has stopped have ended. Never raises: the caller knows the reason."""
        waiting = asyncio.create_task(self.wait())  # unlimited wait: the deadline is that of the next line
        await asyncio.wait([waiting], timeout=_CLOSE_TIMEOUT_S)
        if waiting.done():
            waiting.exception()  # retrieved, so that asyncio does not report it as never retrieved
        else:
            waiting.cancel()
            logger.warning(
                "learner still running, left to the cluster's shutdown run_id=%s waited_s=%g",
                self._run_id,
                _CLOSE_TIMEOUT_S,
            )

    def _fit(self) -> None:
        try:
            error = self._trainer.fit().return_value
        except Exception as failure:  # noqa: BLE001 - any error of this thread is passed to `wait`
            error = _learner_error(failure)
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


def _torch_trainer(settings: LearnerSettings) -> TorchTrainer:
    learner = settings.learner
    # Interval of Ray Train's health checks. Its default of 2 s delays the end of a short run and every restart.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # An actor that announces preemption of spot instances. The ranks do not use it: lost ranks restart from a
    # checkpoint.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return TorchTrainer(
        train_loop,
        train_loop_config={"settings": settings},
        scaling_config=_scaling(learner, settings.label_selector),
        torch_config=TorchConfig(
            backend="nccl" if learner.gpus_per_rank else "gloo", timeout_s=int(settings.step_timeout_s)
        ),
        run_config=TrainRunConfig(
            name=CHECKPOINTS,
            storage_path=str(settings.run_dir),
            failure_config=FailureConfig(max_failures=learner.max_restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.checkpoints_to_keep),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _scaling(learner: LearnerConfig, label_selector: dict[str, str]) -> ScalingConfig:
    resources: dict[str, Any] = {"CPU": learner.cpus_per_rank}
    if learner.gpus_per_rank:
        resources["GPU"] = learner.gpus_per_rank
    return ScalingConfig(
        num_workers=learner.ranks,
        use_gpu=learner.gpus_per_rank > 0,
        resources_per_worker=resources,
        label_selector=label_selector or None,
    )


def _learner_error(failure: Exception) -> RladError:
    """Convert a failure of Ray Train to an `RladError` with the last line of the first failed rank's error."""
    if not isinstance(failure, WorkerGroupError):
        return as_rlad_error(failure, who="the learner")
    rank, cause = min(failure.worker_failures.items())
    lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    return EngineError(
        "the learner failed more often than learner.max_restarts allows; the last failure was of rank "
        f"{rank}: {lines[-1].strip()}"
    )
