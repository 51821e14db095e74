"""The distillation run: the picture in docs/design.md, from top to bottom.

    prompts -> rollout pool -> (teachers, verifiers) -> broker -> learner -> weights -> rollout pool

This process holds references and small numbers; token data goes from pool to pool through the object store.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from pipelines.run.directory import RunDirectory
from pipelines.run.progress import RunProgress
from pipelines.run.result import RunResult, finished_result
from pipelines.training.group_pipeline import GroupPipeline
from pipelines.training.prompts import EncodedPrompts, prepare_prompts
from pipelines.training.run import TrainingRun, complete, prepare_evaluation, require_kind
from pipelines.training.step_loop import PromptScheduler, SubmitGroup, TrainingSet
from pipelines.training.teacher_routing import require_one_vocabulary, route_prompts
from rlad.config import RunConfig
from rlad.data.records import dataset_fingerprint
from rlad.models.references import resolve_model


def distill(config: RunConfig, run: RunDirectory, *, resume: bool, console: Console) -> RunResult:
    """Run, or with `resume` continue, a distillation. Blocks until the student is exported.

    Raises:
        RladError: what went wrong, in one sentence; the run directory holds the last checkpoint.
    """
    require_kind(config, offline=False)
    with run.hold(config, resume=resume):
        student = str(resolve_model(config.student.path))
        prompts = prepare_prompts(config.prompts, config, student)
        evaluation_prompts = prepare_evaluation(config, student, prompts)
        mixtures = route_prompts(config, prompts.records)
        if finished_result(config, run) is None:
            require_one_vocabulary(config)
        return complete(
            config,
            run,
            console,
            lambda progress: _Distillation(config, run, prompts, evaluation_prompts, mixtures, progress).run(),
        )


class _Distillation(TrainingRun):
    """The student's own responses, scored by teachers and judged by verifiers."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        prompts: EncodedPrompts,
        evaluation_prompts: EncodedPrompts,
        mixtures: Mapping[str, Mapping[str, float]],
        progress: RunProgress,
    ) -> None:
        """
        Args:
            mixtures: the teachers of every prompt, by its id: their ids and weights.
        """
        self._prompts = prompts
        self._mixtures = mixtures
        training_set = TrainingSet(
            fingerprint=dataset_fingerprint(prompts.records),
            prompt_ids=[record.id for record in prompts.records],
            group_size=config.rollout.group_size,
        )
        super().__init__(config, run, training_set, evaluation_prompts, progress)

    def _group_submitter(self, turns: PromptScheduler) -> SubmitGroup:
        pools = self._pools
        return GroupPipeline(
            self._config,
            self._prompts,
            self._mixtures,
            turns=turns,
            broker=self._broker,
            rollout=pools.rollout,
            verifiers=pools.verifiers,
            teachers=pools.teachers,
            reference=pools.reference,
        ).bring
