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
from pipelines.monitoring.cost_meter import require_reachable_limits
from pipelines.planning.model_shape import ModelShape, shape_of
from pipelines.planning.pool_plans import GIB, PoolPlan, gpu_memory_problems, publishing_gib, run_pools
from pipelines.planning.prompt_findings import source_findings
from pipelines.planning.teacher_scores import score_size_notes
from pipelines.resolution.answers import try_answers
from pipelines.resolution.models import ModelFiles
from pipelines.resolution.overlap import DisjointPrompts, disjoint
from pipelines.resolution.prompts import EncodedPrompts, prepare_prompts, require_group_key
from pipelines.resolution.teacher_context import longest_prompts, require_context
from pipelines.resolution.teacher_routing import (
    privileged_prompts,
    require_can_read,
    route_prompts,
    vocabulary_mismatch,
)
from pipelines.resolution.tokenizer_findings import tokenizer_findings
from rlad.config import LearnerConfig, RunConfig
from rlad.config.objectives import TrrdConfig
from rlad.data.chat import load_tokenizer, template_fingerprint, tokenizer_fingerprint
from rlad.errors import ConfigError, ModelUnreachableError, PlanError, RladError
from rlad.model_fingerprint import context_tokens
from rlad.sequence_parallel import head_problem
from rlad.starters import is_missing_starter
from rlad.tokenizers.vocabulary import scoring_problem, vocabulary_of
from rlad.verifiers import build_verifier, reward_models

CPUS_PER_GPU = 12
"""CPUs of common GPU machines for each GPU, at least: of eight A100 with 96 CPUs up to eight H100 with 224."""

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

    `cpus` and `gpus` override those of the cluster at `cluster.address`, or of this machine without an address. With
    both of them no cluster is needed. GPUs without CPUs are on other machines, which have `CPUS_PER_GPU` at least,
    unless this machine has as many.
    """
    if cpus is not None and gpus is not None:
        return Resources(cpus=cpus, gpus=gpus)
    if gpus is not None and config.cluster.address is not None:
        return Resources(cpus=gpus * CPUS_PER_GPU, gpus=gpus)
    if config.cluster.address is not None:
        with connected(config.cluster) as resources:
            found = resources
    else:
        found = local_resources(config.cluster)
    if gpus is None:
        gpus = found.gpus
    elif cpus is None and gpus > found.gpus:
        cpus = gpus * CPUS_PER_GPU
    return Resources(cpus=found.cpus if cpus is None else cpus, gpus=gpus)


def make_plan(
    config: RunConfig, available: Resources, *, gpu_memory_gib: float, files: ModelFiles | None = None
) -> Plan:
    """Check a run against its models, prompts, verifiers and the available resources.

    Args:
        config: Configuration of the run.
        available: CPUs and GPUs of the cluster.
        gpu_memory_gib: Memory of one GPU, in GiB.
        files: Models that have been looked up already.
    """
    found = files or ModelFiles()
    student = shape_of(config.student.path, found)
    frozen = {pool: shape_of(model.path, found) for pool, model in config.frozen_models.items()}
    pools = list(run_pools(config, student, frozen, found))
    findings = [
        Finding(level="ok", text=f"configuration {config.name!r} is valid; objective {config.objective.name}"),
        *_check_objective(config),
        *_check_models(config, student, frozen, found),
        *_check_shared_teachers(config, found),
        *_check_score_sizes(config, frozen),
        *_check_prompts(config, found),
        *_check_verifiers(config, found),
        *_check_placement(config, available),
        *_check_memory(config, pools, student, available, gpu_memory_gib),
    ]
    return Plan(pools=pools, findings=findings)


def _check_objective(config: RunConfig) -> Iterator[Finding]:
    objective = config.objective
    if isinstance(objective, TrrdConfig) and objective.can_veto:
        lowest, highest = objective.veto_thresholds
        low, high = objective.model_copy(update={"teacher_log_ratio_clamp": "auto"}).clamp_bounds
        yield Finding(
            level="warning",
            text=f"objective.alpha {objective.alpha:g} with teacher_log_ratio_clamp "
            f"{objective.teacher_log_ratio_clamp:g}: the anchor alone clips tokens at pi = pi_old, where A > 0 if "
            f"log(pi / pi_T) is above {highest:.2f}, and where A < 0 if it is below {lowest:.2f}. The expected update "
            "then imitates the teacher, also against the reward. This is the paper's method; for a teacher that is "
            "not fully trusted, set objective.teacher_log_ratio_clamp to auto "
            f"({low:.2f} to {high:.2f}). See docs/methods.md",
        )
    if config.training.max_refills and objective.name == "kdrl":
        yield Finding(
            level="warning",
            text=f"training.max_refills {config.training.max_refills} drops groups with equal rewards before the "
            "teacher scores them; in those, objective kdrl would still imitate the teacher, most usefully where no "
            "response is correct. Set training.max_refills to 0 to keep them",
        )


def _check_models(
    config: RunConfig, student: ModelShape | None, frozen: Mapping[str, ModelShape | None], files: ModelFiles
) -> Iterator[Finding]:
    shapes = {"student": student, **frozen}
    paths = {"student": config.student.path, **{pool: model.path for pool, model in config.frozen_models.items()}}
    vocabularies, templates = {}, {}
    from_table: dict[str, ModelUnreachableError] = {}
    for role, path in paths.items():
        if is_missing_starter(path):
            yield Finding(
                level="warning",
                text=f"{role} {path} is not trained yet; `rlad run` trains it first, or run `rlad pretrain` now",
            )
            continue
        try:
            tokenizer = load_tokenizer(files.directory(path))
        except ModelUnreachableError as error:
            if shapes[role] is None:
                yield Finding(level="error", text=f"cannot read {role} {path}: {_first_line(error)}")
            else:
                from_table[f"{role} {path}"] = error
            continue
        except RladError as error:
            yield Finding(level="error", text=f"cannot read {role} {path}: {_first_line(error)}")
            continue
        vocabularies[role], templates[role] = vocabulary_of(tokenizer), template_fingerprint(tokenizer)
        yield Finding(level="ok", text=f"{role} {path}: tokenizer {tokenizer_fingerprint(tokenizer)[:12]}")
    if from_table:
        yield Finding(
            level="warning",
            text=f"sizes of {', '.join(from_table)} are from the built-in table of architectures, and their tokenizers "
            f"are not checked: {_first_line(next(iter(from_table.values())))}",
        )
    for pool in [pool for pool in frozen if {pool, "student"} <= vocabularies.keys()]:
        shape = frozen[pool]
        rows = None if shape is None else shape.vocabulary
        known = vocabularies["student"] if student is None else vocabularies["student"].within(student.vocabulary)
        problem = scoring_problem(known, vocabularies[pool], teacher_rows=rows)
        if problem is not None:
            yield Finding(level="error", text=str(vocabulary_mismatch(pool, problem)))
        elif templates[pool] != templates["student"]:
            yield Finding(
                level="warning",
                text=f"student and {pool} have different chat templates; the student's is applied to all prompts",
            )
    yield from _check_adapters(config.learner, student)
    yield from _check_sequence_parallel(config, student)
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    if student is not None and longest > student.max_tokens:
        yield Finding(
            level="error",
            text=f"rollout.max_prompt_tokens + rollout.max_response_tokens is {longest}; "
            f"the student supports {student.max_tokens} tokens",
        )


def _check_score_sizes(config: RunConfig, frozen: Mapping[str, ModelShape | None]) -> Iterator[Finding]:
    for is_large, text in score_size_notes(config, frozen):
        yield Finding(level="warning" if is_large else "ok", text=text)


def _check_shared_teachers(config: RunConfig, files: ModelFiles) -> Iterator[Finding]:
    if config.shared_teachers:
        from pipelines.planning.shared_teachers import check_shared_teachers  # imported late: imports Ray Serve

        yield from (Finding(level=level, text=text) for level, text in check_shared_teachers(config, files))


def _check_adapters(config: LearnerConfig, student: ModelShape | None) -> Iterator[Finding]:
    if config.lora is None or student is None:
        return
    if unknown := config.lora.targets_without([name for name, _ in student.linear_layers]):
        yield Finding(level="error", text=f"learner.lora.target_modules: the student has no linear layer {unknown[0]}")
    trained = student.trained_parameters(config.lora)
    share = f"{trained / 1e6:.1f} of {student.parameters / 1e6:.0f} million parameters"
    yield Finding(level="ok", text=f"LoRA adapters of rank {config.lora.rank} train {share}")


def _check_sequence_parallel(config: RunConfig, student: ModelShape | None) -> Iterator[Finding]:
    learner = config.learner
    if learner.sequence_parallel == 1:
        return
    if student is not None and student.heads:
        problem = head_problem(learner.sequence_parallel, heads=student.heads, kv_heads=student.kv_heads)
        if problem is not None:
            yield Finding(level="error", text=problem)
            return
    tokens = -(-learner.micro_batch_tokens // learner.sequence_parallel)
    yield Finding(
        level="ok",
        text=f"{learner.sequence_parallel} learner ranks share each micro-batch, at most {tokens} tokens a rank",
    )


def _check_prompts(config: RunConfig, files: ModelFiles) -> Iterator[Finding]:
    if files.is_absent(config.student.path):
        yield Finding(level="warning", text="prompts are not checked: the student's tokenizer is not here")
        return
    try:
        student = files.directory(config.student.path)
        prompts: DisjointPrompts = disjoint(
            prepare_prompts(config.prompts, config, student),
            prepare_prompts(config.evaluation.prompts, config, student),
            config.evaluation.overlap,
        )
        training, evaluation = prompts.training, prompts.evaluation
        require_group_key(evaluation, config.evaluation)
        routes = route_prompts(config, training.records)
        _require_contexts(config, files, student, training, routes)
    except (RladError, OSError, ValueError) as error:
        yield Finding(level="error", text=f"prompts: {_first_line(error)}")
        yield from _check_tokenizer(config, files)
        return
    groups, longest = (
        config.training.steps * config.training.prompts_per_step,
        max(len(ids) for ids in training.token_ids),
    )
    amount = f"{groups / len(training.records):.2f} epochs" if config.offline is None else f"{groups} training traces"
    text = f"{len(training.records)} training prompts (longest {longest} tokens, {amount})"
    yield Finding(level="ok", text=f"{text}, {len(evaluation.records)} evaluation prompts")
    yield from _check_responses(config, student, files, training, evaluation)
    yield from (Finding(level=level, text=text) for level, text in source_findings(config, prompts))


def _require_contexts(
    config: RunConfig,
    files: ModelFiles,
    student: Path,
    training: EncodedPrompts,
    routes: Mapping[str, Mapping[str, float]],
) -> None:
    """Refuse scoring models that are on this machine and whose context is too small for their prompts."""
    own = privileged_prompts(config, training.records, routes, load_tokenizer(student))
    for pool, longest in longest_prompts(config, training, routes, own).items():
        model = config.scoring_pools.get(pool)
        if model is None:  # a shared teacher reports its context when it answers
            continue
        try:
            directory = files.directory(model.path)
        except RladError:  # reported with the models
            continue
        limit = config.rollout.max_response_tokens
        require_context(pool, context_tokens(directory), longest, max_response_tokens=limit)


def _check_tokenizer(config: RunConfig, files: ModelFiles) -> Iterator[Finding]:
    """Check the student's tokenizer without prompts: a special token in a message can be why they are refused."""
    with suppress(RladError, OSError, ValueError):  # reported with the models
        for finding in tokenizer_findings(config, files.directory(config.student.path), {}, ()):
            if finding.level != "ok":
                yield Finding(level=finding.level, text=finding.message)


def _check_responses(
    config: RunConfig, student: Path, files: ModelFiles, training: EncodedPrompts, evaluation: EncodedPrompts
) -> Iterator[Finding]:
    """Check that responses can earn a reward: that verifiers read the answers, and that decoding loses nothing."""
    teachers = {}
    for pool, model in config.scoring_pools.items():
        with suppress(RladError):  # a model that is not on this machine is reported elsewhere
            teachers[pool] = files.directory(model.path)
    try:
        for finding in tokenizer_findings(config, student, teachers, training.records):
            yield Finding(level=finding.level, text=finding.message)
        sets = {"training": training, "evaluation": evaluation}
        for trial in try_answers(sets, config.verifiers, seed=config.seed):
            yield Finding(level=trial.level, text=trial.message)
    except (RladError, OSError, ValueError) as error:
        yield Finding(level="error", text=f"responses cannot be checked: {_first_line(error)}")


def _check_verifiers(config: RunConfig, files: ModelFiles) -> Iterator[Finding]:
    models = reward_models(config.verifiers)
    for task, verifier in config.verifiers.items():
        try:
            if task not in models:
                build_verifier(verifier)
            elif files.is_absent(config.student.path) or files.is_absent(models[task].path):
                yield Finding(
                    level="warning",
                    text=f"reward model of task {task} is not checked: its tokenizer or the student's is not here",
                )
                continue
            else:
                student = vocabulary_of(load_tokenizer(files.directory(config.student.path)))
                require_can_read(reward_pool_name(task), files.directory(models[task].path), student)
        except (RladError, OSError, ValueError) as error:
            yield Finding(level="error", text=f"verifier of task {task}: {_first_line(error)}")
        else:
            yield Finding(level="ok", text=f"verifier of task {task}: {verifier.name}")


def _check_placement(config: RunConfig, available: Resources) -> Iterator[Finding]:
    try:
        require_room(config, available, "the cluster")
        require_reachable_limits(config)
    except (PlanError, ConfigError) as error:
        yield Finding(level="error", text=str(error))
    else:
        yield Finding(level="ok", text=f"the pools fit on {available.cpus:g} CPUs and {available.gpus:g} GPUs")
    groups = (config.training.max_staleness + 1) * config.training.prompts_per_step
    if config.offline is None and config.rollout.workers > groups:
        yield Finding(
            level="warning",
            text=f"at most {groups} groups are in flight (training.prompts_per_step, training.max_staleness), so "
            f"{config.rollout.workers - groups} of {config.rollout.workers} rollout workers are always idle: use fewer "
            "workers, or larger steps",
        )


def _check_memory(
    config: RunConfig,
    pools: list[PoolPlan],
    student: ModelShape | None,
    available: Resources,
    gpu_memory_gib: float,
) -> Iterator[Finding]:
    known = [pool for pool in pools if pool.worker_gib is not None]
    if len(known) < len(pools):
        yield Finding(level="warning", text="memory is not checked for models of unknown size")
    yield from (Finding(level="error", text=problem) for problem in gpu_memory_problems(known, gpu_memory_gib))
    published = publishing_gib(config, student) if student is not None else 0.0
    if published:
        what = "gathered weights" if config.weights.full_every == 1 else "gathered weights and a copy for deltas"
        yield Finding(level="ok", text=f"learner rank 0 holds {published:.1f} GiB of {what} in host memory")
    total = sum((pool.worker_gib or 0.0) * pool.workers for pool in known if not pool.resources.gpus)
    total += 0.0 if config.learner.gpus_per_rank else published
    machine = psutil.virtual_memory().total / GIB
    is_elsewhere = config.cluster.address is not None or available.gpus > local_resources(config.cluster).gpus
    if not is_elsewhere and total > machine:
        yield Finding(
            level="error",
            text=f"the pools on CPU need about {total:.0f} GiB of memory; this machine has {machine:.0f} GiB",
        )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
