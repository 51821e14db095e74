"""What a step's work takes each pool of a run, by the pool's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.forecast.assumptions import Array, Work
from pipelines.forecast.costs import Engine, Machine, forward_flops, training_flops
from pipelines.planning.model_shape import DTYPE_BYTES, ModelShape, shape_of
from pipelines.planning.pool_plans import GIB, engine_gib, learner_gib
from rlad.config import RunConfig
from rlad.config.teachers import ScoringConfig
from rlad.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Tokens of responses, sampled by a rollout pool.

    Attributes:
        seconds: of the pool for all responses of a step.
        token_s: between two tokens of one response.
        slots: responses of the mean length so far that a worker can decode at once.
        sequences: responses that a worker does decode at once: strictly on-policy as the step begins, else on average.
        longest_s: of the longest response alone, in that company.
        groups_done_s: float64 [groups], ascending, when a strictly on-policy step's groups are finished; empty where the samplers work ahead.
    """

    seconds: float
    token_s: float
    slots: int
    sequences: float
    longest_s: float
    groups_done_s: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Seconds of a pool that scores or judges: for all groups of a step, and of one replica for a group."""

    seconds: float
    group_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """Seconds of the learner.

    Attributes:
        seconds: forward and backward for all responses of a step.
        last_part_s: of the last part of an update, which no other work hides.
        update_s: of one optimizer step.
    """

    seconds: float
    last_part_s: float
    update_s: float


class PoolCosts:
    """The pools of one run on one kind of device, for steps of the same work."""

    def __init__(self, config: RunConfig, machine: Machine, work: Work) -> None:
        """
        Raises:
            PlanError: the run has a pool on CPU, samples no responses, or a model that is not on this machine.
        """
        _require_figures(config)
        self.config, self.machine, self.work = config, machine, work
        self.student = _known_shape("student", config.student.path)
        self.engine = self._rollout_engine()
        self.scorers = {pool: self._scorer(pool, model) for pool, model in config.scoring_pools.items()}
        self._shares = scoring_shares(config)

    def on_policy(self, workers: int) -> Decoding:
        """A step's groups start at once, and whoever has the most of them is what counts.

        Of n(p) responses that reach position p, as many are decoded at a time as the cache holds: the time is the sum over p of
        max(1, n(p) / slots(p)) decoding steps of min(n(p), slots(p)) sequences.
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
        """The samplers work ahead: k + 1 steps' groups are open, at all positions at once.

        A response has k + 1 steps' time, so a step lasts at least the longest one's share of that, and of the open responses only mean / longest are
        there at a time: fewer than the cache holds where the staleness bounds the step.
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
            groups_done_s=np.array([]),
        )

    def scoring(self, pool: str, replicas: int) -> Scoring:
        """Every response with its prompt, which the engines read again for each: prefixes are not shared where log-probabilities are asked for."""
        seconds = self.scorers[pool].forward_s(self.work.sequences)
        return Scoring(
            seconds=seconds * self._shares[pool] / min(replicas, self.work.groups), group_s=seconds / self.work.groups
        )

    def verifying(self) -> Scoring:
        """Processes judge a group each, one response after the other. Reward models are not in it."""
        pool = self.config.verifier_pool
        group_s = self.work.group_size * self.machine.assumptions.verdict_ms / 1e3
        processes = min(pool.workers * pool.processes_per_worker, self.work.groups)
        return Scoring(seconds=group_s * self.work.groups / processes, group_s=group_s)

    def learning(self, ranks: int) -> Learning:
        """The student's forward and backward pass over prompts and responses, divided evenly by packing."""
        learner, sequences = self.config.learner, self.work.sequences
        devices = ranks * learner.gpus_per_rank
        flops = training_flops(
            self.student, sequences, checkpointing=learner.activation_checkpointing, frozen=learner.lora is not None
        )
        seconds = self.machine.training_s(flops, devices)
        update = 1 / self.config.training.updates_per_step
        part = min(update, learner.micro_batch_tokens * ranks / float(sequences.sum()))
        trained = self.student.trained_parameters(learner.lora)
        update_s = self.machine.optimizer_s(trained, ranks, devices=devices, offloaded=learner.offload_optimizer)
        return Learning(seconds=seconds, last_part_s=seconds * part, update_s=update_s)

    def weights_s(self, devices: float) -> float:
        """New weights on their way: out of a learner's device into its host, to all other machines, and from there into every engine's devices.

        Args:
            devices: of the run; more than a machine has need the network.
        """
        num_bytes = self.student.parameters * DTYPE_BYTES[self.config.student.dtype]
        away_s = 0.0 if self.machine.is_one_node(devices) else self.machine.network_s(num_bytes)
        return self.machine.host_s(num_bytes) + away_s + self.load_s

    @property
    def load_s(self) -> float:
        """Of an engine that maps new weights from its host's memory; it samples nothing meanwhile."""
        return self.machine.host_s(
            self.student.parameters * DTYPE_BYTES[self.config.student.dtype] / max(1.0, self.engine.devices)
        )

    def fits_learner(self, ranks: int) -> bool:
        """Whether so many ranks have the memory that training needs."""
        learner = self.config.learner.model_copy(update={"ranks": ranks})
        return learner_gib(self.student, learner) <= learner.gpus_per_rank * self.machine.device.memory_gib

    def _prefill_s(self, groups: float) -> float:
        """Prompts are read once a group."""
        prompt = np.array([float(self.work.prompt_tokens)])
        return groups * self.machine.forward_s(forward_flops(self.student, prompt), self.engine.devices)

    def _rollout_engine(self) -> Engine:
        rollout, size = self.config.rollout, DTYPE_BYTES[self.config.student.dtype]
        memory_gib = max(1.0, rollout.gpus_per_worker) * self.machine.device.memory_gib * rollout.gpu_memory_fraction
        free_gib = memory_gib - engine_gib(self.student, self.config.student.dtype, rollout.tensor_parallel, 0)
        if free_gib <= 0:
            raise PlanError(
                f"the student's weights leave a rollout worker no memory on {self.machine.device.title}: give it more devices"
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
        shape = _known_shape(pool, str(model.path))
        return Engine(
            machine=self.machine,
            shape=shape,
            dtype=model.dtype,
            devices=model.gpus_per_replica,
            max_sequences=1,
            cache_tokens=0,
        )


def scoring_shares(config: RunConfig) -> Mapping[str, float]:
    """What share of the groups each pool scores: its share of the routed tasks, or of all teachers where there are no routes."""
    shares = {}
    for name, pool in config.teacher_pools.items():
        routes = list(config.teacher_routes.values())
        shares[pool] = sum(name in route for route in routes) / len(routes) if routes else 1 / len(config.teacher_pools)
    return shares | {"reference": 1.0}


def _require_figures(config: RunConfig) -> None:
    if config.offline is not None:
        raise PlanError("only runs that sample from the student are forecast; this one trains on its teacher's traces")
    devices = {
        "rollout": config.rollout.gpus_per_worker,
        **{pool: model.gpus_per_replica for pool, model in config.scoring_pools.items()},
        "learner": config.learner.gpus_per_rank,
    }
    if on_cpu := [pool for pool, number in devices.items() if not number]:
        raise PlanError(f"nothing is predicted for pools on CPU, of which there are no figures: {', '.join(on_cpu)}")


def _known_shape(role: str, path: str) -> ModelShape:
    shape = shape_of(path)
    if shape is None:
        raise PlanError(
            f"the {role}'s size is not known: no model's config.json at {path}; give a directory that has one"
        )
    return shape
