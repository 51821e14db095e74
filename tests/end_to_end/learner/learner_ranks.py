"""Real ranks of the training engine: processes in a process group, and plans of updates for them to run."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors.engines.zero_engine.trainer import ZeroTrainer
from actors.engines.zero_engine.update_metrics import UpdateResult
from rlad.config.learner import LearnerConfig, OptimizerConfig
from rlad.contracts import ScoredGroup
from rlad.objectives import build_objective
from rlad.packing import BatchCounts, BatchRules, LossNormalizer, build_training_batch
from rlad.training_batch import TrainingBatch

from .learner_reference import OBJECTIVE, OUTPUT_LAYER, Sequences

# With this epsilon AdamW's first update is -lr * g / (|g| + 1), which shows the gradient itself and not only its sign.
SHOW_GRADIENT = OptimizerConfig(lr=1.0, eps=1.0, max_gradient_norm=1e9)
PLAIN = OptimizerConfig(lr=1e-3, eps=1e-3, weight_decay=0.01)
# Timeout of one function on all ranks. Functions take seconds; the first one also waits for the imports.
_RUN_TIMEOUT_S = 400


def join_process_group(rank: int, size: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)


class Ranks:
    """Process group whose processes run the same function at the same time."""

    def __init__(self, size: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.size = size
        self._executors = [
            ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=join_process_group, initargs=(rank, size, port)
            )
            for rank in range(size)
        ]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run a function on all ranks, and return the result of each rank."""
        return [
            future.result(timeout=_RUN_TIMEOUT_S)
            for future in [executor.submit(function, *arguments) for executor in self._executors]
        ]

    def close(self) -> None:
        for executor in self._executors:
            executor.shutdown()


@dataclass(frozen=True)
class Plan:
    """Updates for a trainer to run.

    Attributes:
        model_path: Directory of the student's initial model.
        groups: Groups by uid.
        updates: Micro-batches of each rank, or of each group of ranks that share them, for each update.
        config: Learner configuration.
        objective: Configuration of the objective.
        temperature: Sampling temperature of the groups.
        dtype: Data type of the weights.
        poisoned: Indices of updates whose last micro-batch on the last rank overflows.
        teacher_weight: Output layer of the teacher, named `OUTPUT_LAYER` in the groups; None without hidden states.
    """

    model_path: Path
    groups: dict[str, ScoredGroup]
    updates: list[list[list[Sequences]]]
    config: LearnerConfig
    objective: dict[str, Any] = field(default_factory=lambda: OBJECTIVE)
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    poisoned: Sequence[int] = field(default_factory=tuple)
    teacher_weight: Tensor | None = None

    def trainer(self) -> ZeroTrainer:
        return ZeroTrainer(
            model_path=str(self.model_path),
            dtype=self.dtype,
            config=self.config,
            objective=build_objective(self.objective),
            temperature=self.temperature,
            total_updates=len(self.updates),
            teacher_weight=self.teacher_weight,
        )

    def batch(self, update: int, sequences: Sequences) -> tuple[TrainingBatch, BatchCounts]:
        whole = [sequence for rank in self.updates[update] for micro_batch in rank for sequence in micro_batch]
        tokens = sum(int(self.groups[uid].group.response_lengths[index]) for uid, index in whole)
        normalizer = LossNormalizer(num_responses=len(whole), num_tokens=tokens)
        return build_training_batch(
            self.groups,
            sequences,
            normalizer=normalizer,
            rules=BatchRules(
                objective=build_objective(self.objective).config,
                output_layer=None if self.teacher_weight is None else OUTPUT_LAYER,
            ),
        )

    def run_update(self, trainer: ZeroTrainer, update: int) -> UpdateResult:
        rank, size = dist.get_rank(), dist.get_world_size()
        micro_batches = self.updates[update][rank // self.config.sequence_parallel]
        for number, sequences in enumerate(micro_batches):
            batch, counts = self.batch(update, sequences)
            if update in self.poisoned and rank == size - 1 and number == len(micro_batches) - 1:
                batch = replace(batch, advantages=np.full_like(batch.advantages, 3e38))
            trainer.accumulate(batch, counts)
        return trainer.step()


def run_plan(plan: Plan) -> tuple[list[UpdateResult], dict[str, Tensor] | None]:
    """Run a plan on a rank. Return its results and the weights."""
    trainer = plan.trainer()
    results = [plan.run_update(trainer, update) for update in range(len(plan.updates))]
    return results, trainer.gather_weights()


def shared_out(sequences: Sequences, ranks: int, micro_batches: int) -> list[list[Sequences]]:
    """Deal sequences round-robin to the micro-batches of each rank. Some micro-batches may be empty."""
    return [
        [sequences[rank + number * ranks :: ranks * micro_batches] for number in range(micro_batches)]
        for rank in range(ranks)
    ]


def start_weights(model_path: Path) -> dict[str, Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in AutoModelForCausalLM.from_pretrained(model_path).named_parameters()
    }
