"""The learner as the driver sees it: a group of ranks that Ray Train starts, watches and starts again from the last checkpoint."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as TrainRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import WorkerGroupError

from actors.learner.settings import CHECKPOINTS, LearnerSettings
from actors.pool.placement import selector_of
from actors.remote_errors import as_rlad_error
from rlad.config import LearnerConfig, RunConfig
from rlad.errors import EngineError, RladError
from rlad.models.references import resolve_model

logger = logging.getLogger(__name__)


# How long ranks that were told to stop may take: they notice at their next claim, within a micro-batch.
_CLOSE_TIMEOUT_S = 60.0


def train_loop(train_loop_config: dict[str, LearnerSettings]) -> RladError | None:
    """What Ray Train runs on every rank.

    Returns:
        The error on which all ranks agreed to end the run: raised, it would only make Ray Train start them again. None when the training is done.
    """
    # Imported on the ranks alone: DeepSpeed has no business in the driver.
    from actors.learner.collectives import AgreedError
    from actors.learner.rank import LearnerRank

    try:
        LearnerRank(train_loop_config["settings"]).run()
    except AgreedError as agreed:
        return agreed.error
    return None


class LearnerGroup:
    """Runs the learner to its end beside the driver, and says how it ended.

    A rank that dies takes the others with it: Ray Train starts all of them again from the newest checkpoint, up to `learner.max_restarts` times, and
    they claim the same batches again. A new driver on the same run directory continues from that checkpoint too.
    """

    def __init__(self, config: RunConfig, *, run_dir: Path, broker: ActorHandle, run_id: str) -> None:
        """
        Args:
            run_id: names the run in logs.

        Raises:
            PlanError: no such student.
        """
        model_path = Path(resolve_model(config.student.path)).resolve()
        settings = LearnerSettings(config=config, model_path=str(model_path), run_dir=run_dir.resolve(), broker=broker)
        self._trainer = _torch_trainer(settings)
        self._run_id = run_id
        self._ended: Future[None] = Future()

    def start(self) -> None:
        """Start the ranks and return at once. They report to the broker when they are up."""
        threading.Thread(target=self._fit, name=f"learner-{self._run_id}", daemon=True).start()

    async def wait(self) -> None:
        """Return when the student is trained and exported.

        Raises:
            RladError: why the training ended before.
        """
        ended = asyncio.wrap_future(self._ended)
        ended.add_done_callback(
            lambda future: future.cancelled() or future.exception()
        )  # looked at, though the waiter may be gone by then
        await asyncio.shield(ended)

    def failure(self) -> BaseException | None:
        """The error that ended the learner; None while it runs and after it has finished."""
        return self._ended.exception() if self._ended.done() else None

    async def close(self) -> None:
        """Give ranks that the broker told to stop the time to do so. Never raises: whoever closes has the reason already."""
        waiting = asyncio.create_task(self.wait())
        await asyncio.wait([waiting], timeout=_CLOSE_TIMEOUT_S)
        if waiting.done():
            waiting.exception()  # looked at, so that asyncio does not call it forgotten
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
        except Exception as failure:  # noqa: BLE001 - whatever ends this thread is handed to those who wait
            error = _told(failure)
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


def _torch_trainer(settings: LearnerSettings) -> TorchTrainer:
    config, learner = settings.config, settings.config.learner
    # How often Ray Train looks after its ranks; its default of 2 s is felt at the end of a short run and in every restart.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # An actor that would tell ranks of spot instances to be taken away. Ours do not listen: what is lost starts again from the checkpoint.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    return TorchTrainer(
        train_loop,
        train_loop_config={"settings": settings},
        scaling_config=_scaling(learner, selector_of(config.cluster, "learner")),
        torch_config=TorchConfig(
            backend="nccl" if learner.gpus_per_rank else "gloo", timeout_s=int(learner.step_timeout_s)
        ),
        run_config=TrainRunConfig(
            name=CHECKPOINTS,
            storage_path=str(settings.run_dir),
            failure_config=FailureConfig(max_failures=learner.max_restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoints.keep),
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


def _told(failure: Exception) -> RladError:
    """Ray Train's failure as one of ours, with the last words of the first rank that failed."""
    if not isinstance(failure, WorkerGroupError):
        return as_rlad_error(failure, who="the learner")
    rank, cause = min(failure.worker_failures.items())
    words = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    return EngineError(
        f"the learner failed more often than learner.max_restarts allows; at the last time rank {rank} ended with {words[-1].strip()}"
    )
