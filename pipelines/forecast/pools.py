"""Seconds that each pool of a run needs for a step, as a function of its size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from actors.weights.distribution import IN_FLIGHT
from pipelines.forecast.assumptions import Array, Work
from pipelines.forecast.costs import Engine, Machine, exchanged_bytes, forward_flops, training_flops
from pipelines.planning.model_shape import DTYPE_BYTES, ModelShape, shape_of
from pipelines.planning.pool_plans import GIB, engine_gib, learner_gib
from pipelines.resolution.models import ModelFiles
from pipelines.simulation.distribution import distribute
from rlad.config import RunConfig
from rlad.config.teachers import ScoringConfig
from rlad.errors import PlanError, RladError

# Sizes of the objects of a full version and of a delta (`actors.weights.publish`, which imports torch), and the most of
# them that are simulated.
_BUCKET_BYTES, _PART_BYTES = 64 << 20, 8 << 20
_MOST_OBJECTS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Decoding of a step's responses by the rollout pool.

    Attributes:
        seconds: Time of the pool for all responses of a step.
        token_s: Time between two tokens of one response.
        slots: Concurrent responses of mean context length that fit in a worker's cache.
        sequences: Concurrent responses of a worker: at the start of a strictly on-policy step, otherwise the mean.
        longest_s: Time of the longest response at this concurrency.
        groups_done_s: float64 [groups], ascending. Times at which the groups of a step are complete, after they were
            issued together.
    """

    seconds: float
    token_s: float
    slots: int
    sequences: float
    longest_s: float
    groups_done_s: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Scoring or verification by one pool.

    Attributes:
        seconds: Time of the pool for all groups of a step.
        group_s: Time of one replica for one group.
    """

    seconds: float
    group_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """Training by the learner.

    Attributes:
        seconds: Forward and backward pass over all responses of a step, for every pass.
        last_part_s: Forward and backward pass of the last micro-batches of an update, which no other work hides.
        update_s: One optimizer step.
    """

    seconds: float
    last_part_s: float
    update_s: float


class PoolCosts:
    """Costs of the pools of one run, on one device type and for one amount of work per step."""

    def __init__(self, config: RunConfig, machine: Machine, work: Work, files: ModelFiles | None = None) -> None:
        """
        Raises:
            PlanError: The run is offline, has a pool on CPU, or uses a model of unknown size.
        """
        _require_figures(config)
        self.config, self.machine, self.work = config, machine, work
        self._files = files or ModelFiles()
        self.student = _known_shape("student", config.student.path, self._files)
        self.engine = self._rollout_engine()
        self.scorers = {pool: self._scorer(pool, model) for pool, model in config.scoring_pools.items()}
        self._shares = scoring_shares(config)
        paths = {config.student.path: self.student} | {
            model.path: self.scorers[pool].shape for pool, model in config.scoring_pools.items()
        }
        self.from_table = [path for path, shape in paths.items() if shape.is_from_table]

    def on_policy(self, workers: int) -> Decoding:
        """Return the decoding of a strictly on-policy step, where all groups start at once.

        The worker with the most groups determines the time. Of the n(p) responses that reach position p, the cache
        holds slots(p): the time is the sum over p of max(1, n(p) / slots(p)) decoding steps of min(n(p), slots(p))
        sequences.
        """
        groups = -(-self.work.groups // workers)
        lengths, prompt = self.work.lengths, self.work.prompt_tokens
        positions = np.arange(int(lengths[-1]), dtype=np.float64)
        reach = (len(lengths) - np.searchsorted(lengths, positions, side="right")) * (groups / self.work.groups)
        slots = self.engine.slots(prompt + positions + 1.0)
        passes = np.maximum(1.0, reach / slots)
        reached_s = np.cumsum(passes * self.engine.decode_s(np.minimum(reach, slots), prompt + positions))
        return Decoding(
            seconds=float(reached_s[-1]) + self._prefill_s(groups),
            token_s=float(reached_s[-1] / passes.sum()),
            slots=int(self.engine.slots(np.array(self.work.mean_context))),
            sequences=float(np.minimum(reach, slots)[0]),
            longest_s=float(reached_s[-1] / passes.sum() * lengths[-1]),
            groups_done_s=reached_s[self.work.longest_of_groups.astype(int) - 1] + self._prefill_s(groups),
        )

    def ahead(self, workers: int, *, staleness: int) -> Decoding:
        """Return the decoding of a step when rollout works ahead by k = `staleness` steps.

        The groups of k + 1 steps are in flight, at all positions. A response has the time of k + 1 steps, so a step
        lasts at least 1 / (k + 1) of the longest response. On average only mean / longest of the responses in flight
        are being decoded, which is fewer than the cache holds if staleness bounds the step.
        """
        groups = self.work.groups * (staleness + 1)
        busy = min(workers, groups)
        context, longest = self.work.mean_context, float(self.work.lengths[-1])
        slots = float(self.engine.slots(np.array(context)))
        open_tokens = groups * self.work.group_size * float(self.work.lengths.mean())
        sequences = min(slots, open_tokens / longest / busy)
        token_s = float(self.engine.decode_s(np.array(sequences), np.array(context)))
        seconds = self.work.response_tokens * token_s / (sequences * busy) + self._prefill_s(self.work.groups / busy)
        return Decoding(
            seconds=seconds,
            token_s=token_s,
            slots=int(slots),
            sequences=sequences,
            longest_s=token_s * longest,
            groups_done_s=token_s * self.work.longest_of_groups + self._prefill_s(1),
        )

    def scoring(self, pool: str, replicas: int) -> Scoring:
        """Return the scoring of a step by `replicas` replicas.

        Each response is scored with its prompt: prefixes are not shared when prompt log-probabilities are requested.
        """
        seconds = self.scorers[pool].forward_s(self.work.sequences)
        return Scoring(
            seconds=seconds * self._shares[pool] / min(replicas, self.work.groups), group_s=seconds / self.work.groups
        )

    def verifying(self) -> Scoring:
        """Return the verification of a step. A process verifies one group at a time; reward models are not included."""
        pool = self.config.verifier_pool
        group_s = self.work.group_size * self.machine.assumptions.verdict_ms / 1e3
        processes = min(pool.workers * pool.processes_per_worker, self.work.groups)
        return Scoring(seconds=group_s * self.work.groups / processes, group_s=group_s)

    def learning(self, ranks: int) -> Learning:
        """Return the training of a step. Packing divides the tokens evenly among the ranks.

        Ranks that share rows exchange their slices for heads in every layer, which nothing hides.
        """
        learner, training, sequences = self.config.learner, self.config.training, self.work.sequences
        tokens, shared = float(sequences.sum()), learner.sequence_parallel
        devices = ranks * learner.gpus_per_rank
        flops = training_flops(
            self.student, sequences, checkpointing=learner.activation_checkpointing, frozen=learner.lora is not None
        )
        exchanged = exchanged_bytes(
            self.student, tokens / ranks, shared, checkpointing=learner.activation_checkpointing
        )
        exchange_s = self.machine.peers_s(exchanged, shared * learner.gpus_per_rank)
        pass_s = self.machine.training_s(flops, devices) + exchange_s
        update = 1 / training.updates_per_step
        part = min(update, learner.micro_batch_tokens * ranks / shared / tokens)
        trained = self.student.trained_parameters(learner.lora)
        update_s = self.machine.optimizer_s(trained, ranks, devices=devices, offloaded=learner.offload_optimizer)
        return Learning(seconds=pass_s * training.passes, last_part_s=pass_s * part, update_s=update_s)

    def weights_s(self, devices: float) -> float:
        """Return the seconds of a weight update: learner device to host, host to other nodes, host to engine devices.

        Args:
            devices: Number of devices of the run. If they exceed one node, every other node gets the weights.
        """
        num_bytes, assumed, weights = self._weight_bytes, self.machine.assumptions, self.config.weights
        # One version of `full_every` is full. The others are deltas, which are encoded first.
        deltas = 1 - 1 / weights.full_every if weights.transport == "object_store" else 0.0
        away_s = (1 - deltas) * self._away_s(num_bytes, devices, _BUCKET_BYTES) + deltas * (
            num_bytes / (assumed.delta_gb_s * 1e9) + self._away_s(assumed.delta_share * num_bytes, devices, _PART_BYTES)
        )
        return self.machine.host_s(num_bytes) + away_s + self.load_s

    def _away_s(self, num_bytes: float, devices: float, object_bytes: int) -> float:
        """Return the seconds until all other nodes of the run have bytes that one node publishes as objects."""
        if self.machine.is_one_node(devices):
            return 0.0
        if self.config.weights.transport != "object_store":
            return self.machine.network_s(num_bytes)
        others = math.ceil(devices / self.machine.assumptions.gpus_per_node) - 1
        objects = max(1, min(_MOST_OBJECTS, math.ceil(num_bytes / object_bytes)))
        return self.machine.store_s(num_bytes) * distribute(others, objects=objects, in_flight=IN_FLIGHT).transfers

    @property
    def load_s(self) -> float:
        """Seconds in which an engine loads new weights from host memory. It samples nothing meanwhile."""
        return self.machine.host_s(self._weight_bytes / max(1.0, self.engine.devices))

    @property
    def _weight_bytes(self) -> float:
        return float(self.student.parameters * DTYPE_BYTES[self.config.student.dtype])

    def fits_learner(self, ranks: int) -> bool:
        """Return whether the learner fits in the memory of this number of ranks."""
        learner = self.config.learner.model_copy(update={"ranks": ranks})
        return learner_gib(self.student, learner) <= learner.gpus_per_rank * self.machine.device.memory_gib

    def _prefill_s(self, groups: float) -> float:
        """Return the seconds to prefill prompts, one per group."""
        prompt = np.array([float(self.work.prompt_tokens)])
        return groups * self.machine.forward_s(forward_flops(self.student, prompt), self.engine.devices)

    def _rollout_engine(self) -> Engine:
        rollout, size = self.config.rollout, DTYPE_BYTES[self.config.student.dtype]
        memory_gib = max(1.0, rollout.gpus_per_worker) * self.machine.device.memory_gib * rollout.gpu_memory_fraction
        free_gib = memory_gib - engine_gib(self.student, self.config.student.dtype, rollout.tensor_parallel, 0)
        if free_gib <= 0:
            raise PlanError(
                f"the student's weights leave no memory for the cache of a rollout worker on "
                f"{self.machine.device.title}; raise rollout.gpus_per_worker"
            )
        return Engine(
            machine=self.machine,
            shape=self.student,
            dtype=self.config.student.dtype,
            devices=rollout.gpus_per_worker,
            max_sequences=rollout.max_sequences,
            cache_tokens=free_gib * GIB / (self.student.kv_values_per_token * size),
        )

    def _scorer(self, pool: str, model: ScoringConfig) -> Engine:
        shape = _known_shape(pool, str(model.path), self._files)
        return Engine(
            machine=self.machine,
            shape=shape,
            dtype=model.dtype,
            devices=model.gpus_per_replica,
            max_sequences=1,
            cache_tokens=0,
        )


def scoring_shares(config: RunConfig) -> Mapping[str, float]:
    """Return the share of groups that each pool scores: its share of routed tasks, or an equal share without routes."""
    shares = {}
    for name, pool in config.teacher_pools.items():
        routes = list(config.teacher_routes.values())
        shares[pool] = sum(name in route for route in routes) / len(routes) if routes else 1 / len(config.teacher_pools)
    return shares | {"reference": 1.0}


def _require_figures(config: RunConfig) -> None:
    if config.offline is not None:
        raise PlanError(
            "a forecast needs a run that samples from the student; this run trains on traces of its teacher"
        )
    devices = {
        "rollout": config.rollout.gpus_per_worker,
        **{pool: model.gpus_per_replica for pool, model in config.scoring_pools.items()},
        "learner": config.learner.gpus_per_rank,
    }
    if on_cpu := [pool for pool, number in devices.items() if not number]:
        raise PlanError(f"a forecast needs all pools on GPUs; these pools run on CPU: {', '.join(on_cpu)}")


def _known_shape(role: str, path: str, files: ModelFiles) -> ModelShape:
    shape = shape_of(path, files)
    if shape is not None:
        return shape
    try:
        directory = files.directory(path)
    except RladError as error:
        raise PlanError(f"the size of the {role} is unknown: {error}") from error
    raise PlanError(f"the size of the {role} is unknown: {directory / 'config.json'} cannot be read")
