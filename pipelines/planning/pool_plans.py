"""Pools of a run: number of workers, devices, and estimated memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from actors.engines.zero_engine.config import LARGEST_REDUCE_BUCKET
from actors.pool.placement import reward_pool_name
from pipelines.cluster.resources import Resources, demand_by_pool, generation_demand
from pipelines.planning.model_shape import DTYPE_BYTES, ModelShape, shape_of
from pipelines.planning.teacher_scores import hidden_state_gib
from pipelines.resolution.models import ModelFiles
from rlad.config import EvaluationSuite, LearnerConfig, RunConfig
from rlad.verifiers import reward_models

GIB = 2**30
# Memory of a process without a model: the interpreter with torch, and engine buffers.
_PROCESS_GIB = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """Size of one pool.

    Attributes:
        pool: Name of the pool.
        workers: Number of workers.
        resources: CPUs and GPUs of all workers together.
        worker_gib: Estimated memory of one worker, in GiB; None if the size of the model is unknown.
    """

    pool: str
    workers: int
    resources: Resources
    worker_gib: float | None


def pool_plans(config: RunConfig | EvaluationSuite) -> list[PoolPlan]:
    """Return the pools of a run or an evaluation, without any checks."""
    files = ModelFiles()
    student = shape_of(config.student.path, files)
    if isinstance(config, RunConfig):
        frozen = {pool: shape_of(model.path, files) for pool, model in config.frozen_models.items()}
        return list(run_pools(config, student, frozen, files))
    return [_rollout_plan(config, student), _verifier_plan(config), *_reward_plans(config, files)]


def gpu_memory_problems(pools: Iterable[PoolPlan], gpu_memory_gib: float) -> Iterator[str]:
    """Describe each pool whose workers need more memory than their GPUs have. Pools of unknown memory are skipped."""
    for pool in pools:
        share = pool.resources.gpus / pool.workers
        if share and pool.worker_gib is not None and pool.worker_gib > share * gpu_memory_gib:
            needed = f"a {pool.pool} worker needs about {pool.worker_gib:.0f} GiB"
            yield f"{needed} and has {share:g} GPUs of {gpu_memory_gib:g} GiB"


def offloaded_gib(config: RunConfig) -> float | None:
    """Return the host memory for a learner rank's offloaded optimizer state, in GiB (`learner.offload_optimizer`).

    None if the size of the student is unknown.
    """
    shape = shape_of(config.student.path)
    return None if shape is None else 12 * shape.trained_parameters(config.learner.lora) / config.learner.ranks / GIB


def publishing_gib(config: RunConfig, student: ModelShape) -> float:
    """Return the host memory that learner rank 0 needs to publish weights, in GiB, besides its objects in the store.

    These are the gathered weights, and with deltas a copy of the last version (`weights.full_every`). Direct transports
    hold one bucket of tensors at a time, which is not counted.
    """
    if config.weights.transport != "object_store" or config.offline is not None:
        return 0.0
    copies = 1 if config.weights.full_every == 1 else 2
    return copies * student.parameters * DTYPE_BYTES[config.student.dtype] / GIB


def run_pools(
    config: RunConfig,
    student: ModelShape | None,
    frozen: Mapping[str, ModelShape | None],
    files: ModelFiles | None = None,
) -> Iterator[PoolPlan]:
    """Yield the pools of a run.

    Args:
        config: Configuration of the run.
        student: Shape of the student; None if it is unknown.
        frozen: Shapes of teachers and reference policy by pool; None for unknown ones.
        files: Models that have been looked up already.
    """
    files = files or ModelFiles()
    demand, rollout = demand_by_pool(config), config.rollout
    tokens = rollout.max_prompt_tokens + rollout.max_response_tokens
    yield _rollout_plan(config, student)
    writer = config.frozen_models.get("teacher")
    if writer is not None and config.offline is not None and config.offline.traces is None:
        generator, shape = config.offline.generator_of(rollout), frozen["teacher"]
        longest = generator.max_prompt_tokens + generator.max_response_tokens
        memory = engine_gib(shape, writer.dtype, generator.tensor_parallel, longest) if shape else None
        yield PoolPlan(
            pool="teacher", workers=generator.workers, resources=generation_demand(config)["teacher"], worker_gib=memory
        )
    for pool, model in config.scoring_pools.items():
        shape = frozen[pool]
        memory = engine_gib(shape, model.dtype, model.tensor_parallel, tokens) if shape else None
        yield PoolPlan(pool=pool, workers=model.replicas, resources=demand[pool], worker_gib=memory)
    yield _verifier_plan(config)
    yield from _reward_plans(config, files)
    memory = _learner_gib(config, student, frozen)
    yield PoolPlan(pool="learner", workers=config.learner.ranks, resources=demand["learner"], worker_gib=memory)


def _learner_gib(
    config: RunConfig, student: ModelShape | None, frozen: Mapping[str, ModelShape | None]
) -> float | None:
    """Return the memory of a learner rank, in GiB; None if the size of a model that it holds is unknown."""
    if student is None:
        return None
    memory = learner_gib(student, config.learner)
    if (sender := config.hidden_state_teacher) is None:
        return memory
    pool, model = sender
    shape = frozen[pool]
    return None if shape is None else memory + hidden_state_gib(shape, model.dtype, config)


def _rollout_plan(config: RunConfig | EvaluationSuite, student: ModelShape | None) -> PoolPlan:
    rollout = config.rollout
    tokens = rollout.max_prompt_tokens + rollout.max_response_tokens
    return PoolPlan(
        pool="rollout",
        workers=rollout.workers,
        resources=Resources(
            cpus=rollout.workers * rollout.cpus_per_worker, gpus=rollout.workers * rollout.gpus_per_worker
        ),
        worker_gib=engine_gib(student, config.student.dtype, rollout.tensor_parallel, tokens) if student else None,
    )


def _verifier_plan(config: RunConfig | EvaluationSuite) -> PoolPlan:
    pool = config.verifier_pool
    return PoolPlan(
        pool="verifier",
        workers=pool.workers,
        resources=Resources(cpus=pool.workers * pool.cpus_per_worker, gpus=0.0),
        worker_gib=_PROCESS_GIB,
    )


def _reward_plans(config: RunConfig | EvaluationSuite, files: ModelFiles) -> Iterator[PoolPlan]:
    for task, model in reward_models(config.verifiers).items():
        shape = shape_of(model.path, files)
        yield PoolPlan(
            pool=reward_pool_name(task),
            workers=model.workers,
            resources=Resources(cpus=model.workers * model.cpus_per_worker, gpus=model.workers * model.gpus_per_worker),
            worker_gib=engine_gib(shape, model.dtype, 1, 0) if shape else None,
        )


def engine_gib(shape: ModelShape, dtype: str, tensor_parallel: int, tokens: int) -> float:
    """Return the minimum memory of one engine over all its GPUs, in GiB.

    It holds the weights, one process per GPU, and the key-value cache of one sequence of `tokens` tokens. More cache
    allows more concurrent sequences.
    """
    bytes_per_value = DTYPE_BYTES[dtype]
    needed = shape.parameters * bytes_per_value + tokens * shape.kv_values_per_token * bytes_per_value
    return needed / GIB + _PROCESS_GIB * tensor_parallel


def learner_gib(shape: ModelShape, config: LearnerConfig) -> float:
    """Return the peak memory of one learner rank, in GiB: the larger one of loading and training.

    Loading: every rank holds the whole model before ZeRO stage 3 shards it.

    Training: model states follow ZeRO with mixed precision (Rajbhandari et al., arXiv:1910.02054, section 3): 2 bytes
    per parameter for weights and 12 for the float32 master weights and Adam's moments, and 4 for gradients, which are
    accumulated in float32 here. On CPU everything is float32: 4, 8 and 4 bytes. Each ZeRO stage shards one more of them
    over the ranks. Frozen weights of a student with adapters have neither gradients nor optimizer state.

    Activations take 34 bytes per token, layer and hidden unit (Korthikanti et al., arXiv:2205.05198, without the
    attention matrix). With checkpointing that is one layer, and 2 bytes for the input of each. Ranks that share a row
    (`sequence_parallel`) hold their slices of it. Further terms: the
    logits of one chunk, twice; the float32 gradient of the output layer, on GPU with a product of the same size that is
    added to it; the buffers in which gradients are reduced, two where communication overlaps with the backward pass.
    """
    on_gpu = config.gpus_per_rank > 0
    weights, gradients, optimizer = (2, 4, 12) if on_gpu else (4, 4, 8)
    share = config.ranks
    trained = shape.trained_parameters(config.lora)
    held = shape.parameters if config.lora is None else shape.parameters + trained
    states = held * weights / (share if config.zero_stage >= 3 else 1) + trained * (
        gradients / (share if config.zero_stage >= 2 else 1)
        + (0.0 if config.offload_optimizer else optimizer / (share if config.zero_stage >= 1 else 1))
    )
    layer = 34 * shape.hidden
    per_token = shape.layers * layer if not config.activation_checkpointing else 2 * shape.layers * shape.hidden + layer
    activations = config.micro_batch_tokens / config.sequence_parallel * per_token * (1 if on_gpu else 2)
    logits = config.logprob_chunk_tokens * shape.vocabulary * 4 * 2
    head = 0 if config.lora is not None else shape.hidden * shape.vocabulary * 4 * (2 if on_gpu else 1)
    buckets = min(trained, LARGEST_REDUCE_BUCKET) * 4 * (2 if on_gpu and config.zero_stage >= 2 else 1)
    return max(held * weights, states + activations + logits + head + buckets) / GIB + _PROCESS_GIB
