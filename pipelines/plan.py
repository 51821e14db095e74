"""`rlad plan`: everything about a run that can be wrong and can be seen without starting an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import psutil
from rich.table import Table
from transformers import AutoTokenizer

from actors.reward import reward_pool_name
from pipelines.cluster import Resources, connected, demand_by_pool, generation_demand, local_resources, require_room
from pipelines.evaluate import require_group_key
from pipelines.model_shape import DTYPE_BYTES, ModelShape, shape_of
from pipelines.prompts import prepare_prompts, require_disjoint
from pipelines.shared_teachers import check_shared_teachers
from pipelines.teachers import require_equal_outputs, route_prompts, vocabulary_mismatch
from rlad.config import EvaluationSuite, LearnerConfig, RunConfig
from rlad.data.chat import template_fingerprint, tokenizer_fingerprint
from rlad.errors import PlanError, RladError
from rlad.starters import is_missing_starter, resolve_model
from rlad.verifiers import build_verifier, reward_models

GIB = 2**30
# What a process costs before it holds a model: the interpreter with torch, and an engine's own buffers.
_PROCESS_GIB = 1.0

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was checked."""

    level: Level
    text: str

    def line(self) -> str:
        return {"ok": "[green]ok[/]       ", "warning": "[yellow]warning[/]  ", "error": "[bold red]error[/]    "}[self.level] + self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """A pool's size and what one of its workers needs, in GiB; None where the model is not known here."""

    pool: str
    workers: int
    resources: Resources
    worker_gib: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All findings, and the pools as they would be placed."""

    pools: list[PoolPlan]
    findings: list[Finding]

    @property
    def has_errors(self) -> bool:
        return any(finding.level == "error" for finding in self.findings)

    def table(self) -> Table:
        table = Table(title="Pools", title_justify="left")
        for column in ("pool", "workers", "CPUs", "GPUs", "GiB a worker"):
            table.add_column(column, justify="left" if column == "pool" else "right")
        for pool in self.pools:
            memory = f"{pool.worker_gib:.1f}" if pool.worker_gib is not None else "unknown"
            table.add_row(pool.pool, str(pool.workers), f"{pool.resources.cpus:g}", f"{pool.resources.gpus:g}", memory)
        return table


def available_resources(config: RunConfig, *, cpus: float | None, gpus: float | None) -> Resources:
    """What the plan is for: the given figures, else the cluster at the configured address, else this machine."""
    if config.cluster.address is not None:
        with connected(config.cluster) as resources:
            found = resources
    else:
        found = local_resources(config.cluster)
    return Resources(cpus=found.cpus if cpus is None else cpus, gpus=found.gpus if gpus is None else gpus)


def make_plan(config: RunConfig, available: Resources, *, gpu_memory_gib: float) -> Plan:
    """Check a run against models, prompts and machines."""
    student = shape_of(config.student.path)
    frozen = {pool: shape_of(model.path) for pool, model in config.frozen_models.items()}
    pools = list(_pools(config, student, frozen))
    findings = [
        Finding(level="ok", text=f"configuration {config.name!r} is valid; objective {config.objective.name}"),
        *_check_models(config, student, frozen),
        *(Finding(level=level, text=text) for level, text in check_shared_teachers(config)),
        *_check_prompts(config),
        *_check_verifiers(config),
        *_check_placement(config, available),
        *_check_memory(config, pools, gpu_memory_gib),
    ]
    return Plan(pools=pools, findings=findings)


def pool_plans(config: RunConfig | EvaluationSuite) -> list[PoolPlan]:
    """The pools of a run or an evaluation, without checking it against anything."""
    student = shape_of(config.student.path)
    if isinstance(config, RunConfig):
        return list(_pools(config, student, {pool: shape_of(model.path) for pool, model in config.frozen_models.items()}))
    return [_rollout_plan(config, student), _verifier_plan(config), *_reward_plans(config)]


def gpu_memory_problems(pools: Iterable[PoolPlan], gpu_memory_gib: float) -> Iterator[str]:
    """A sentence for each pool whose workers need more than their GPUs have; pools of unknown memory pass."""
    for pool in pools:
        share = pool.resources.gpus / pool.workers
        if share and pool.worker_gib is not None and pool.worker_gib > share * gpu_memory_gib:
            yield f"a {pool.pool} worker needs about {pool.worker_gib:.0f} GiB and has {share:g} GPUs of {gpu_memory_gib:g} GiB"


def offloaded_gib(config: RunConfig) -> float | None:
    """Host memory of the optimizer state that a rank keeps there (`learner.offload_optimizer`); None where the student is not known here."""
    shape = shape_of(config.student.path)
    return None if shape is None else 12 * shape.trained_parameters(config.learner.lora) / config.learner.ranks / GIB


def _check_models(config: RunConfig, student: ModelShape | None, frozen: Mapping[str, ModelShape | None]) -> Iterator[Finding]:
    paths = {"student": config.student.path, **{pool: model.path for pool, model in config.frozen_models.items()}}
    fingerprints, templates = {}, {}
    for role, path in paths.items():
        if is_missing_starter(path):
            yield Finding(level="warning", text=f"{role} {path} is not made yet: `rlad run` makes it first, or `rlad pretrain` now")
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(resolve_model(path)))
        except (RladError, OSError, ValueError) as error:
            yield Finding(level="error", text=f"{role} {path} cannot be read: {_first_line(error)}")
            continue
        fingerprints[role], templates[role] = tokenizer_fingerprint(tokenizer), template_fingerprint(tokenizer)
        yield Finding(level="ok", text=f"{role} {path}: tokenizer {fingerprints[role][:12]}")
    for pool in [pool for pool in frozen if {pool, "student"} <= fingerprints.keys()]:
        if fingerprints[pool] != fingerprints["student"]:
            yield Finding(level="error", text=str(vocabulary_mismatch(pool)))
        elif templates[pool] != templates["student"]:
            yield Finding(level="warning", text=f"the chat templates differ: the student's is applied, and the {pool} scores what it gives")
    yield from _check_outputs(config, student, frozen)
    yield from _check_adapters(config.learner, student)
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    if student is not None and longest > student.max_tokens:
        yield Finding(level="error", text=f"prompt and response may have {longest} tokens, the student was made for {student.max_tokens}")


def _check_outputs(config: RunConfig, student: ModelShape | None, frozen: Mapping[str, ModelShape | None]) -> Iterator[Finding]:
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
    yield Finding(level="ok", text=f"adapters of rank {config.lora.rank}: {trained / 1e6:.1f} of {student.parameters / 1e6:.0f} million parameters")


def _check_prompts(config: RunConfig) -> Iterator[Finding]:
    if is_missing_starter(config.student.path):
        yield Finding(level="warning", text="prompts are not checked before the student's tokenizer exists")
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
        return
    groups, longest = config.training.steps * config.training.prompts_per_step, max(len(ids) for ids in training.token_ids)
    amount = f"{groups / len(training.records):.2f} epochs" if config.offline is None else f"{groups} traces to train on"
    text = f"{len(training.records)} training prompts (longest {longest} tokens, {amount}), {len(evaluation.records)} for evaluation"
    yield Finding(level="ok", text=text)


def _check_verifiers(config: RunConfig) -> Iterator[Finding]:
    models = reward_models(config.verifiers)
    for task, verifier in config.verifiers.items():
        try:
            if task not in models:
                build_verifier(verifier)
            elif is_missing_starter(config.student.path):
                yield Finding(level="warning", text=f"the reward model of task {task} is not checked before the student's tokenizer exists")
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
        yield Finding(level="error", text=f"the pools on CPU need about {total:.0f} GiB of memory, this machine has {machine:.0f}")


def _pools(config: RunConfig, student: ModelShape | None, frozen: Mapping[str, ModelShape | None]) -> Iterator[PoolPlan]:
    demand, rollout = demand_by_pool(config), config.rollout
    tokens = rollout.max_prompt_tokens + rollout.max_response_tokens
    yield _rollout_plan(config, student)
    writer = config.frozen_models.get("teacher")
    if writer is not None and config.offline is not None and config.offline.traces is None:
        generator, shape = config.offline.generator_of(rollout), frozen["teacher"]
        longest = generator.max_prompt_tokens + generator.max_response_tokens
        memory = engine_gib(shape, writer.dtype, generator.tensor_parallel, longest) if shape else None
        yield PoolPlan(pool="teacher", workers=generator.workers, resources=generation_demand(config)["teacher"], worker_gib=memory)
    for pool, model in config.scoring_pools.items():
        shape = frozen[pool]
        memory = engine_gib(shape, model.dtype, model.tensor_parallel, tokens) if shape else None
        yield PoolPlan(pool=pool, workers=model.replicas, resources=demand[pool], worker_gib=memory)
    yield _verifier_plan(config)
    yield from _reward_plans(config)
    memory = learner_gib(student, config.learner) if student else None
    yield PoolPlan(pool="learner", workers=config.learner.ranks, resources=demand["learner"], worker_gib=memory)


def _rollout_plan(config: RunConfig | EvaluationSuite, student: ModelShape | None) -> PoolPlan:
    rollout = config.rollout
    tokens = rollout.max_prompt_tokens + rollout.max_response_tokens
    return PoolPlan(
        pool="rollout",
        workers=rollout.workers,
        resources=Resources(cpus=rollout.workers * rollout.cpus_per_worker, gpus=rollout.workers * rollout.gpus_per_worker),
        worker_gib=engine_gib(student, config.student.dtype, rollout.tensor_parallel, tokens) if student else None,
    )


def _verifier_plan(config: RunConfig | EvaluationSuite) -> PoolPlan:
    pool = config.verifier_pool
    return PoolPlan(
        pool="verifier", workers=pool.workers, resources=Resources(cpus=pool.workers * pool.cpus_per_worker, gpus=0.0), worker_gib=_PROCESS_GIB
    )


def _reward_plans(config: RunConfig | EvaluationSuite) -> Iterator[PoolPlan]:
    for task, model in reward_models(config.verifiers).items():
        shape = shape_of(model.path)
        yield PoolPlan(
            pool=reward_pool_name(task),
            workers=model.workers,
            resources=Resources(cpus=model.workers * model.cpus_per_worker, gpus=model.workers * model.gpus_per_worker),
            worker_gib=engine_gib(shape, model.dtype, 1, 0) if shape else None,
        )


def engine_gib(shape: ModelShape, dtype: str, tensor_parallel: int, tokens: int) -> float:
    """Least memory of one engine over all its GPUs: weights, and the key-value cache of one longest sequence. More cache means more sequences at once."""
    bytes_per_value = DTYPE_BYTES[dtype]
    needed = shape.parameters * bytes_per_value + tokens * shape.kv_values_per_token * bytes_per_value
    return needed / GIB + _PROCESS_GIB * tensor_parallel


def learner_gib(shape: ModelShape, config: LearnerConfig) -> float:
    """Memory of one rank.

    ZeRO (Rajbhandari et al., arXiv:1910.02054, section 3) with mixed precision: 2 bytes a parameter for weights, 2 for gradients and 12 for the float32
    master and Adam's moments; on CPU everything is float32 (4, 4 and 8). Each stage divides one more of them by the ranks. Frozen weights of a student
    with adapters are weights alone. Activations: 34 bytes per token, layer and hidden unit (Korthikanti et al., arXiv:2205.05198, without the attention
    matrix), 2 with checkpointing; plus one chunk's logits.
    """
    on_gpu = config.gpus_per_rank > 0
    weights, gradients, optimizer = (2, 2, 12) if on_gpu else (4, 4, 8)
    share = config.ranks
    trained = shape.trained_parameters(config.lora)
    held = shape.parameters if config.lora is None else shape.parameters + trained
    states = held * weights / (share if config.zero_stage >= 3 else 1) + trained * (
        gradients / (share if config.zero_stage >= 2 else 1)
        + (0.0 if config.offload_optimizer else optimizer / (share if config.zero_stage >= 1 else 1))
    )
    per_token = shape.layers * shape.hidden * (2 if config.activation_checkpointing else 34) * (1 if on_gpu else 2)
    logits = config.logprob_chunk_tokens * shape.vocabulary * 4 * 2
    return (states + config.micro_batch_tokens * per_token + logits) / GIB + _PROCESS_GIB


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
