"""One rank of the learner: claims parts of batches from the broker, trains on them, publishes weights, writes checkpoints."""

from __future__ import annotations

import functools
import itertools
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from ray import train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from actors.engines.zero_engine.trainer import ZeroTrainer
from actors.engines.zero_engine.update_metrics import UpdateResult, step_metrics
from actors.experience.batch_shards import BatchShard, GroupRefs
from actors.learner.collectives import answer, together
from actors.learner.settings import CHECKPOINTS, EXPORT, LearnerSettings
from actors.learner.weight_publisher import open_weight_publisher
from rlad.contracts import ScoredGroup
from rlad.errors import DeadlineError
from rlad.objectives import build_objective
from rlad.packing import BatchCounts, BatchRules, build_training_batch
from rlad.training_batch import TrainingBatch

MicroBatch = tuple[TrainingBatch, BatchCounts]

_REGISTRATION_TIMEOUT_S = 120.0
_PARTIAL = ".partial-"


class LearnerRank:
    """Lives from one start of the ranks to the next."""

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        self._rank = train.get_context().get_world_rank()
        self._checkpoints = settings.run_dir / CHECKPOINTS
        self._checkpoint_s = self._send_s = 0.0
        config = settings.config
        self._rules = BatchRules(
            objective=config.objective, truncated=config.learner.truncated, overlong=config.overlong_penalty
        )
        torch.set_num_threads(config.learner.threads)
        transformers.utils.logging.disable_progress_bar()
        self._trainer = together(
            lambda: ZeroTrainer(
                model_path=settings.model_path,
                dtype=getattr(torch, config.student.dtype),
                config=config.learner,
                objective=build_objective(config.objective),
                temperature=config.rollout.temperature,
                total_updates=config.training.steps * config.training.updates_per_step,
                seed=config.seed,
            )
        )
        self._outlet = open_weight_publisher(config, self._trainer, settings.broker)

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the end; then export, and stay until the driver needs the weights no more.

        Raises:
            AgreedError: on all ranks, what ended the training early.
        """
        training = self._settings.config.training
        first = self._restore()
        self._send_s += self._outlet.publish(first, self._tell_started)
        for step in range(first, training.steps):
            metrics = self._train(step)
            started = time.monotonic()
            self._send_s += self._outlet.publish(
                step + 1, functools.partial(self._tell_finished, metrics=metrics, started=started)
            )
            if (step + 1) % self._settings.config.checkpoints.every_steps == 0 or step + 1 == training.steps:
                self._save(step + 1)
        together(
            lambda: self._trainer.export(self._settings.run_dir / EXPORT, base_model=self._settings.config.student.path)
        )
        together(self._tell_exported)
        self._outlet.until_dismissed(training.steps)

    def _restore(self) -> int:
        """The step to begin with."""
        if self._rank == 0:
            for leftover in self._checkpoints.glob(f"{_PARTIAL}*"):
                shutil.rmtree(leftover)
        checkpoint = train.get_checkpoint()
        if checkpoint is None:
            return 0
        with checkpoint.as_directory() as directory:
            return int(together(lambda: self._trainer.load(Path(directory)))["step"])

    def _train(self, step: int) -> dict[str, float]:
        """One training step, part by part as the broker hands them out."""
        updates: list[UpdateResult] = []
        wait_s = train_s = 0.0
        index = 0
        while True:
            asked = time.monotonic()
            spent_s = self._outlet.before_shard(step, index)
            part, micro_batches = together(functools.partial(self._claim, step, index))
            claimed = time.monotonic()
            for batch, counts in micro_batches:
                self._trainer.accumulate(batch, counts)
            if part.ends_update:
                updates.append(together(self._trainer.step))
            wait_s += claimed - asked - spent_s
            self._send_s += spent_s
            train_s += time.monotonic() - claimed
            index += 1
            if part.ends_step:
                # Both also of the time before this step: of the checkpoint, if there was one, and of the weights that it began with.
                times = {"wait": wait_s, "train": train_s, "send": self._send_s, "checkpoint": self._checkpoint_s}
                self._send_s = self._checkpoint_s = 0.0
                return {**step_metrics(updates), **{f"learner/{name}_s": seconds for name, seconds in times.items()}}

    def _claim(self, step: int, index: int) -> tuple[BatchShard, list[MicroBatch]]:
        """This rank's share of a part, with the data it needs. Waits as long as the broker says that nothing is there yet."""
        part: BatchShard | None = None
        while part is None:
            part = answer(self._settings.broker.claim.remote(step, self._rank, index), "the broker (claim)")
        groups = _fetch(part.groups)
        return part, [
            build_training_batch(groups, sequences, normalizer=part.size, rules=self._rules)
            for sequences in part.micro_batches
        ]

    def _tell_started(self, publications: list[Any]) -> None:
        answer(
            self._settings.broker.report_started.remote(publications[0].manifest.version, publications),
            "the broker (report_started)",
        )

    def _tell_finished(self, publications: list[Any], *, metrics: dict[str, float], started: float) -> None:
        metrics = {**metrics, "learner/publish_s": time.monotonic() - started}
        answer(
            self._settings.broker.finish_step.remote(publications[0].manifest.version - 1, publications, metrics),
            "the broker (finish_step)",
        )

    def _tell_exported(self) -> None:
        if self._rank == 0:
            answer(self._settings.broker.report_exported.remote(), "the broker (report_exported)")

    def _save(self, steps: int) -> None:
        """Write the checkpoint of so many trained steps, and let go of the batches it holds once Ray Train knows it.

        It is written in its place under another name, so that whatever has the right name is whole. `report` returns before Ray Train has registered it, and
        a rank that died then would be started from the checkpoint before: so the batches are released only behind the registration.
        """
        started = time.monotonic()
        partial, final = (self._checkpoints / f"{prefix}step-{steps:06d}" for prefix in (_PARTIAL, ""))
        together(lambda: self._trainer.save(partial, {"step": steps}))
        checkpoint = None
        if self._rank == 0:
            if final.exists():  # whole, but never registered: the ranks died in between
                shutil.rmtree(final)
            partial.rename(final)
            checkpoint = Checkpoint.from_directory(final)
        train.report({"step": steps}, checkpoint=checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
        together(lambda: self._commit(steps, final))
        self._checkpoint_s = time.monotonic() - started

    def _commit(self, steps: int, path: Path) -> None:
        if self._rank != 0:
            return
        known = train.get_all_reported_checkpoints(
            CheckpointConsistencyMode.COMMITTED, timeout_s=_REGISTRATION_TIMEOUT_S
        )
        if not any(Path(reported.checkpoint.path) == path for reported in known):
            raise DeadlineError(
                f"Ray Train has not registered the checkpoint {path} within {_REGISTRATION_TIMEOUT_S:g} s"
            )
        answer(self._settings.broker.commit.remote(steps), "the broker (commit)")


def _fetch(groups: dict[str, GroupRefs]) -> dict[str, ScoredGroup]:
    """The groups' columns, in one request. Arrays stay views of shared memory, but for a mixture of teachers."""
    refs = [ref for each in groups.values() for ref in each.all_refs]
    columns = iter(answer(refs, "the object store") if refs else [])
    return {uid: each.scored_group(list(itertools.islice(columns, len(each.all_refs)))) for uid, each in groups.items()}
