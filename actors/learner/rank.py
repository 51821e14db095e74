"""One learner rank: claims batch shards from the broker, trains on them, publishes weights and writes checkpoints."""

from __future__ import annotations

import functools
import logging
import shutil
import time
from pathlib import Path
from typing import NoReturn

import torch
import transformers
from ray import train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from actors.engines.devices import peak_memory_gib
from actors.engines.zero_engine.trainer import ZeroTrainer
from actors.engines.zero_engine.update_metrics import UpdateResult, learner_metrics
from actors.experience.batch_shards import BatchShard, EndRequest
from actors.experience.broker import ExperienceBroker
from actors.learner.broker_link import BrokerLink
from actors.learner.checkpoints import checkpoints_in, newest_checkpoint
from actors.learner.collectives import AgreedError, agree_on_success, broadcast_from_first
from actors.learner.group_data import fetch_groups, lost_in
from actors.learner.settings import CHECKPOINTS, EXPORT, LearnerSettings, TeacherOutput
from actors.learner.weight_publisher import open_weight_publisher
from actors.messages import WeightsPublication
from rlad.errors import DeadlineError, StopRequestedError
from rlad.integrity.durable import move_into_place
from rlad.models.locations import fetch_model
from rlad.models.output_layer import OutputLayer, read_output_layer
from rlad.objectives import build_objective
from rlad.packing import BatchCounts, BatchRules, build_training_batch
from rlad.training_batch import TrainingBatch

logger = logging.getLogger(__name__)

MicroBatch = tuple[TrainingBatch, BatchCounts]

_REGISTRATION_TIMEOUT_S = 120.0
_PARTIAL = ".partial-"


class LostHistoryError(Exception):
    """Lost group that applied updates were trained on. Ray Train restarts the ranks from their checkpoint."""


class LearnerRank:
    """One learner rank, from one start of the ranks to the next."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._rank = train.get_context().get_world_rank()
        self._checkpoints = settings.run_dir / CHECKPOINTS
        self._checkpoint_s = self._send_s = 0.0
        torch.set_num_threads(settings.learner.threads)
        transformers.utils.logging.disable_progress_bar()
        teacher_output = agree_on_success(lambda: _teacher_output(settings.teacher_output))
        self._rules = BatchRules(
            objective=settings.objective,
            truncated=settings.learner.truncated,
            output_layer=None if teacher_output is None else teacher_output.sha256,
        )
        self._trainer = agree_on_success(
            lambda: ZeroTrainer(
                model_path=str(fetch_model(settings.student)),
                dtype=getattr(torch, settings.dtype),
                config=settings.learner,
                objective=build_objective(settings.objective),
                temperature=settings.temperature,
                total_updates=settings.steps * settings.updates_per_step,
                seed=settings.seed,
                vocabulary_size=settings.vocabulary_size,
                timeout_s=settings.step_timeout_s,
                teacher_weight=None if teacher_output is None else teacher_output.weight,
            )
        )
        self._broker = BrokerLink(settings.broker)
        self._publisher = open_weight_publisher(settings, self._trainer, self._broker)

    def run(self) -> None:
        """Train from the newest checkpoint to the last step, export the student, and stay until dismissed.

        Raises:
            AgreedError: Training ended early, on all ranks. If it was asked to end, it has written a checkpoint.
        """
        settings = self._settings
        first = self._saved_steps = self._restore()
        self._send_s += self._publisher.publish(first, self._broker.report_started)
        for step in range(first, settings.steps):
            metrics = self._train(step)
            if isinstance(metrics, EndRequest):
                self._end_early(step, metrics.reason)
            started = time.monotonic()
            self._send_s += self._publisher.publish(
                step + 1, functools.partial(self._report_finished, metrics=metrics, started=started)
            )
            if (step + 1) % settings.checkpoint_every_steps == 0 or step + 1 == settings.steps:
                self._save(step + 1)
        agree_on_success(lambda: self._trainer.export(settings.run_dir / EXPORT, base_model=settings.student_reference))
        agree_on_success(self._report_exported)
        self._publisher.until_dismissed(settings.steps)

    def _restore(self) -> int:
        """Load the newest checkpoint, if there is one. Return the first step to train."""
        if self._rank == 0:
            for leftover in self._checkpoints.glob(f"{_PARTIAL}*"):
                shutil.rmtree(leftover)
        newest = newest_checkpoint(self._checkpoints)
        if newest is None:
            return 0
        return int(agree_on_success(lambda: self._trainer.load(newest))["step"])

    def _train(self, step: int) -> dict[str, float] | EndRequest:
        """Train one step, shard by shard as the broker hands them out.

        Returns:
            The step's metrics, or the broker's request to end. No update of the step is applied then, and the gradient
            accumulated for it is dropped.
        """
        updates: list[UpdateResult] = []
        wait_s = train_s = 0.0
        index = 0
        while True:
            asked = time.monotonic()
            spent_s = self._publisher.before_shard(step, index)
            work = self._claim_together(step, index)
            if work is None:  # groups of the shard are sampled again
                wait_s += time.monotonic() - asked - spent_s
                self._send_s += spent_s
                continue
            shard, micro_batches = work
            if isinstance(shard, EndRequest):
                return shard
            claimed = time.monotonic()
            for batch, counts in micro_batches:
                self._trainer.accumulate(batch, counts)
            if shard.ends_update:
                updates.append(agree_on_success(self._trainer.step))
            wait_s += claimed - asked - spent_s
            self._send_s += spent_s
            train_s += time.monotonic() - claimed
            index += 1
            if shard.ends_step:
                # `send` and `checkpoint` include the time before this step: sending its weights, and the checkpoint.
                times = {"wait": wait_s, "train": train_s, "send": self._send_s, "checkpoint": self._checkpoint_s}
                self._send_s = self._checkpoint_s = 0.0
                return {
                    **learner_metrics(updates, passes=self._settings.passes),
                    **{f"learner/{name}_s": seconds for name, seconds in times.items()},
                    "learner/peak_memory_gib": peak_memory_gib(self._settings.learner.gpus_per_rank),
                }

    def _claim_together(self, step: int, index: int) -> tuple[BatchShard | EndRequest, list[MicroBatch]] | None:
        """Claim the next batch shard on all ranks. None if data of the shard were lost: it has to be claimed again.

        No rank has trained on the shard, so the gradient of the earlier ones stays.

        Raises:
            LostHistoryError: The step was trained on a lost group before, in an earlier pass.
        """
        try:
            return agree_on_success(functools.partial(self._claim, step, index))
        except AgreedError as agreed:
            lost = lost_in(agreed.errors)
            if not lost:
                raise
        logger.warning("step=%d shard=%d state=lost groups=%s", step, index, [uid for uid, _ in lost])

        def report() -> bool:
            return self._rank != 0 or self._broker.call(ExperienceBroker.report_lost, step, index, lost)

        if not broadcast_from_first(int(agree_on_success(report))):
            raise LostHistoryError(f"step {step} was trained on groups whose data are lost: " + ", ".join(dict(lost)))
        return None

    def _claim(self, step: int, index: int) -> tuple[BatchShard | EndRequest, list[MicroBatch]]:
        """Claim this rank's next batch shard and build its micro-batches. Waits until the broker has formed it.

        All ranks of a sequence group claim the same shard, and each builds the whole rows of which it trains a slice.
        """
        group = self._rank // self._settings.learner.sequence_parallel
        shard: BatchShard | EndRequest | None = None
        while shard is None:
            shard = self._broker.call(ExperienceBroker.claim, step, group, index)
        if isinstance(shard, EndRequest):
            return shard, []
        groups = fetch_groups(shard.groups)
        return shard, [
            build_training_batch(groups, sequences, normalizer=shard.normalizer, rules=self._rules)
            for sequences in shard.micro_batches
        ]

    def _report_finished(
        self, publications: list[WeightsPublication], *, metrics: dict[str, float], started: float
    ) -> None:
        self._broker.finish_step(publications, {**metrics, "learner/publish_s": time.monotonic() - started})

    def _report_exported(self) -> None:
        if self._rank == 0:
            self._broker.report_exported()

    def _end_early(self, steps: int, reason: str) -> NoReturn:
        """Write a checkpoint after `steps` trained steps if there is none yet, and end on all ranks.

        Raises:
            AgreedError: Always.
        """
        if steps > self._saved_steps:
            self._save(steps)
        raise AgreedError(StopRequestedError(f"{reason} after {steps} steps; --resume continues from their checkpoint"))

    def _save(self, steps: int) -> None:
        """Write a checkpoint after `steps` trained steps, and release their batch shards once Ray Train has registered
        it.

        The checkpoint is written under a temporary name, flushed, and renamed, so that a checkpoint with its final name
        is complete. `train.report` returns before the checkpoint is registered, and Ray Train deletes older checkpoints
        only then. The shards are therefore released only after the registration.
        """
        started = time.monotonic()
        partial, final = (self._checkpoints / f"{prefix}step-{steps:06d}" for prefix in (_PARTIAL, ""))
        agree_on_success(lambda: self._trainer.save(partial, {"step": steps}))
        agree_on_success(lambda: self._move_into_place(partial, final))
        checkpoint = Checkpoint.from_directory(final) if self._rank == 0 else None
        train.report({"step": steps}, checkpoint=checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
        agree_on_success(lambda: self._commit(steps, final))
        self._saved_steps = steps
        self._checkpoint_s = time.monotonic() - started

    def _move_into_place(self, partial: Path, final: Path) -> None:
        if self._rank == 0:
            if final.exists():  # complete, but not registered before the ranks died
                replaced = final.with_name(f"{_PARTIAL}replaced-{final.name}")
                final.rename(replaced)  # a directory with a final name is always complete
                shutil.rmtree(replaced)
            move_into_place(partial, final)

    def _commit(self, steps: int, path: Path) -> None:
        if self._rank != 0:
            return
        known = train.get_all_reported_checkpoints(
            CheckpointConsistencyMode.COMMITTED, timeout_s=_REGISTRATION_TIMEOUT_S
        )
        registered = {Path(reported.checkpoint.path) for reported in known}
        if path not in registered:
            raise DeadlineError(
                f"Ray Train did not register the checkpoint {path} within {_REGISTRATION_TIMEOUT_S:g} s"
            )
        self._broker.call(ExperienceBroker.commit, steps)
        for old in checkpoints_in(self._checkpoints)[: -self._settings.checkpoints_to_keep]:
            if old not in registered:  # Ray Train deletes those that it has registered
                shutil.rmtree(old, ignore_errors=True)


def _teacher_output(settings: TeacherOutput | None) -> OutputLayer | None:
    """Read the teacher's output layer from its files on this node."""
    if settings is None:
        return None
    return read_output_layer(fetch_model(settings.model), getattr(torch, settings.dtype))
