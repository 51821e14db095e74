"""Checks of `rlad plan`: errors of a run that can be found without starting an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from rich.markup import escape
from rich.table import Table

from actors.pool.placement import reward_pool_name
from pipelines.cluster.connection import connected, local_resources
from pipelines.cluster.resources import Resources, require_room
from pipelines.planning.model_shape import ModelShape, shape_of
from pipelines.planning.pool_plans import GIB, PoolPlan, gpu_memory_problems, run_pools
from pipelines.resolution.answers import try_answers
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts, require_disjoint, require_group_key
from pipelines.resolution.teacher_routing import require_equal_outputs, route_prompts, vocabulary_mismatch
from pipelines.resolution.tokenizer_findings import tokenizer_findings
from rlad.config import LearnerConfig, RunConfig
from rlad.data.chat import load_tokenizer, template_fingerprint, tokenizer_fingerprint
from rlad.errors import PlanError, RladError
from rlad.models.references import resolve_model
from rlad.starters import is_missing_starter
from rlad.verifiers import build_verifier, reward_models

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Result of one check."""

    level: Level
    text: str

    def line(self) -> str:
        """Return the finding with its level in front, as rich markup."""
        return {"ok": "[green]ok[/]       ", "warning": "[yellow]warning[/]  ", "error": "[bold red]error[/]    "}[
            self.level
        ] + escape(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Findings of all checks, and the pools of the run."""

    pools: list[PoolPlan]
    findings: list[Finding]

    @property
    def has_errors(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def table(self) -> Table:
        """Return the pools with their workers, devices and memory."""
        table = Table(title="Pools", title_justify="left")
        for column in ("pool", "workers", "CPUs", "GPUs", "GiB per worker"):
            table.add_column(column, justify="left" if column == "pool" else "right")
        for pool in self.pools:
            memory = f"{pool.worker_gib:.1f}" if pool.worker_gib is not None else "unknown"
            table.add_row(pool.pool, str(pool.workers), f"{pool.resources.cpus:g}", f"{pool.resources.gpus:g}", memory)
        return table


def available_resources(config: RunConfig, *, cpus: float | None, gpus: float | None) -> Resources:
    """Return the resources to plan for.

    `cpus` and `gpus` override those of the cluster at `cluster.address`, or of this machine without an address.
    """
    if config.cluster.address is not None:
        with connected(config.cluster) as resources:
            found = resources
    else:
        found = local_resources(config.cluster)
    return Resources(cpus=found.cpus if cpus is None else cpus, gpus=found.gpus if gpus is None else gpus)


def make_plan(config: RunConfig, available: Resources, *, gpu_memory_gib: float) -> Plan:
    """Check a run against its models, prompts, verifiers and the available resources.

    Args:
        config: Configuration of the run.
        available: CPUs and GPUs of the cluster.
        gpu_memory_gib: Memory of one GPU, in GiB.
    """
    student = shape_of(config.student.path)
    frozen = {pool: shape_of(model.path) for pool, model in config.frozen_models.items()}
    pools = list(run_pools(config, student, frozen))
    findings = [
        Finding(level="ok", text=f"configuration {config.name!r} is valid; objective {config.objective.name}"),
        *_check_models(config, student, frozen),
        *_check_shared_teachers(config),
        *_check_prompts(config),
        *_check_verifiers(config),
        *_check_placement(config, available),
        *_check_memory(config, pools, gpu_memory_gib),
    ]
    return Plan(pools=pools, findings=findings)


def _check_models(
    config: RunConfig, student: ModelShape | None, frozen: Mapping[str, ModelShape | None]
) -> Iterator[Finding]:
    paths = {"student": config.student.path, **{pool: model.path for pool, model in config.frozen_models.items()}}
    fingerprints, templates = {}, {}
    for role, path in paths.items():
        if is_missing_starter(path):
            yield Finding(
                level="warning",
                text=f"{role} {path} is not trained yet; `rlad run` trains it first, or run `rlad pretrain` now",
            )
            continue
        try:
            tokenizer = load_tokenizer(resolve_model(path))
        except RladError as error:
            yield Finding(level="error", text=f"cannot read {role} {path}: {_first_line(error)}")
            continue
        fingerprints[role], templates[role] = tokenizer_fingerprint(tokenizer), template_fingerprint(tokenizer)
        yield Finding(level="ok", text=f"{role} {path}: tokenizer {fingerprints[role][:12]}")
    for pool in [pool for pool in frozen if {pool, "student"} <= fingerprints.keys()]:
        if fingerprints[pool] != fingerprints["student"]:
            yield Finding(level="error", text=str(vocabulary_mismatch(pool)))
        elif templates[pool] != templates["student"]:
            yield Finding(
                level="warning",
                text=f"student and {pool} have different chat templates; the student's is applied to all prompts",
            )
    yield from _check_outputs(config, student, frozen)
    yield from _check_adapters(config.learner, student)
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    if student is not None and longest > student.max_tokens:
        yield Finding(
            level="error",
            text=f"rollout.max_prompt_tokens + rollout.max_response_tokens is {longest}; "
            f"the student supports {student.max_tokens} tokens",
        )


def _check_shared_teachers(config: RunConfig) -> Iterator[Finding]:
    if config.shared_teachers:
        from pipelines.planning.shared_teachers import check_shared_teachers  # imported late: imports Ray Serve

        yield from (Finding(level=level, text=text) for level, text in check_shared_teachers(config))


def _check_outputs(
    config: RunConfig, student: ModelShape | None, frozen: Mapping[str, ModelShape | None]
) -> Iterator[Finding]:
    for pool, shape in frozen.items():
        if config.objective.teacher_support != "full" or pool == "reference" or student is None or shape is None:
            continue
        try:
            require_equal_outputs(pool, shape.vocabulary, student.vocabulary)
        except PlanError as error:
            yield Finding(level="error", text=str(error))


def _check_adapters(config: LearnerConfig, student: ModelShape | None) -> Iterator[Finding]:
    if config.lora is None or student is None:
        return
    if unknown := config.lora.targets_without([name for name, _ in student.linear_layers]):
        yield Finding(level="error", text=f"learner.lora.target_modules: the student has no linear layer {unknown[0]}")
    trained = student.trained_parameters(config.lora)
    share = f"{trained / 1e6:.1f} of {student.parameters / 1e6:.0f} million parameters"
    yield Finding(level="ok", text=f"LoRA adapters of rank {config.lora.rank} train {share}")


def _check_prompts(config: RunConfig) -> Iterator[Finding]:
    if is_missing_starter(config.student.path):
        yield Finding(level="warning", text="prompts are not checked: the student's tokenizer does not exist yet")
        return
    try:
        student = str(resolve_model(config.student.path))
        training = prepare_prompts(config.prompts, config, student)
        evaluation = prepare_prompts(config.evaluation.prompts, config, student)
        require_disjoint(training, evaluation)
        require_group_key(evaluation, config.evaluation)
        route_prompts(config, training.records)
    except (RladError, OSError, ValueError) as error:
        yield Finding(level="error", text=f"prompts: {_first_line(error)}")
        yield from _check_tokenizer(config)
        return
    groups, longest = (
        config.training.steps * config.training.prompts_per_step,
        max(len(ids) for ids in training.token_ids),
    )
    amount = f"{groups / len(training.records):.2f} epochs" if config.offline is None else f"{groups} training traces"
    text = f"{len(training.records)} training prompts (longest {longest} tokens, {amount})"
    yield Finding(level="ok", text=f"{text}, {len(evaluation.records)} evaluation prompts")
    yield from _check_responses(config, Path(student), training, evaluation)
    for kind, prompts in (("training", training), ("evaluation", evaluation)):
        if prompts.too_long:
            limit = config.rollout.max_prompt_tokens
            yield Finding(
                level="warning",
                text=f"{prompts.too_long} {kind} prompts are left out: longer than rollout.max_prompt_tokens ({limit})",
            )


def _check_tokenizer(config: RunConfig) -> Iterator[Finding]:
    """Check the student's tokenizer without prompts: a special token in a message can be why they are refused."""
    with suppress(RladError, OSError, ValueError):  # reported with the models
        for finding in tokenizer_findings(config, resolve_model(config.student.path), {}, ()):
            if finding.level != "ok":
                yield Finding(level=finding.level, text=finding.message)


def _check_responses(
    config: RunConfig, student: Path, training: EncodedPrompts, evaluation: EncodedPrompts
) -> Iterator[Finding]:
    """Check that responses can earn a reward: that verifiers read the answers, and that decoding loses nothing."""
    teachers = {}
    for pool, model in config.scoring_pools.items():
        with suppress(RladError):  # a model that is not on this machine is reported elsewhere
            teachers[pool] = resolve_model(model.path)
    try:
        for finding in tokenizer_findings(config, student, teachers, training.records):
            yield Finding(level=finding.level, text=finding.message)
        sets = {"training": training, "evaluation": evaluation}
        for trial in try_answers(sets, config.verifiers, seed=config.seed):
            yield Finding(level=trial.level, text=trial.message)
    except (RladError, OSError, ValueError) as error:
        yield Finding(level="error", text=f"responses cannot be checked: {_first_line(error)}")


def _check_verifiers(config: RunConfig) -> Iterator[Finding]:
    models = reward_models(config.verifiers)
    for task, verifier in config.verifiers.items():
        try:
            if task not in models:
                build_verifier(verifier)
            elif is_missing_starter(config.student.path):
                yield Finding(
                    level="warning",
                    text=f"reward model of task {task} is not checked: the student's tokenizer does not exist yet",
                )
                continue
            elif tokenizer_fingerprint(models[task].path) != tokenizer_fingerprint(resolve_model(config.student.path)):
                raise vocabulary_mismatch(reward_pool_name(task))
        except (RladError, OSError, ValueError) as error:
            yield Finding(level="error", text=f"verifier of task {task}: {_first_line(error)}")
        else:
            yield Finding(level="ok", text=f"verifier of task {task}: {verifier.name}")


def _check_placement(config: RunConfig, available: Resources) -> Iterator[Finding]:
    try:
        require_room(config, available, "the cluster")
    except PlanError as error:
        yield Finding(level="error", text=str(error))
    else:
        yield Finding(level="ok", text=f"the pools fit on {available.cpus:g} CPUs and {available.gpus:g} GPUs")


def _check_memory(config: RunConfig, pools: list[PoolPlan], gpu_memory_gib: float) -> Iterator[Finding]:
    known = [pool for pool in pools if pool.worker_gib is not None]
    if len(known) < len(pools):
        yield Finding(level="warning", text="memory is not checked for models that are not on this machine")
    yield from (Finding(level="error", text=problem) for problem in gpu_memory_problems(known, gpu_memory_gib))
    total = sum((pool.worker_gib or 0.0) * pool.workers for pool in known if not pool.resources.gpus)
    machine = psutil.virtual_memory().total / GIB
    if config.cluster.address is None and total > machine:
        yield Finding(
            level="error",
            text=f"the pools on CPU need about {total:.0f} GiB of memory; this machine has {machine:.0f} GiB",
        )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
