"""Training engine of the learner: one student under DeepSpeed ZeRO, trained on packed micro-batches.

The engine does not depend on Ray. `torch.distributed` is already initialized, or this process is the only rank.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.engines.hf_engine.packed_attention import PackedLayout
from actors.engines.zero_engine.config import learning_rate
from actors.engines.zero_engine.export import AdapterExport, export_model
from actors.engines.zero_engine.lora import StudentWeight, student_weights
from actors.engines.zero_engine.policy_model import HeadOutput, PolicyModel, load_policy_model
from actors.engines.zero_engine.update_metrics import UpdateResult, UpdateTotals
from rlad.config.learner import LearnerConfig
from rlad.errors import EngineError, NonFiniteGradientError
from rlad.failures import Action, Event, decide
from rlad.objectives import EntropyController, Extras, Objective, ObjectiveOutput, check_missing_teacher
from rlad.packing import BatchCounts
from rlad.sequence_parallel import padded_row
from rlad.training_batch import TrainingBatch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported

# These import DeepSpeed.
from actors.engines.zero_engine.checkpoint_files import SafeCheckpointEngine, require_intact, write_checkpoint
from actors.engines.zero_engine.deepspeed_start import start_deepspeed
from actors.engines.zero_engine.row_columns import selected, selected_optional, trained_hidden_states
from actors.engines.zero_engine.sequence_parallel import SequenceGroup
from actors.engines.zero_engine.weight_source import WeightSource

# DeepSpeed 0.19 calls a collective by its deprecated name for every gradient bucket.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)

logger = logging.getLogger(__name__)

_CHECKPOINT_TAG = "zero"


class ZeroTrainer:
    """Trainer on one learner rank. All ranks must call its collective methods equally often and in the same order."""

    def __init__(
        self,
        *,
        model_path: str,
        dtype: torch.dtype,
        config: LearnerConfig,
        objective: Objective[Any],
        temperature: float,
        total_updates: int,
        seed: int = 0,
        vocabulary_size: int | None = None,
        timeout_s: float | None = None,
        teacher_weight: Tensor | None = None,
    ) -> None:
        """Load the student and initialize DeepSpeed. Collective.

        Args:
            model_path: Hugging Face model directory.
            dtype: Data type of the weights, float32 or bfloat16, also of published and exported weights. The optimizer
                keeps float32 masters in both cases.
            config: Learner configuration.
            objective: Training objective.
            temperature: Sampling temperature of the rollouts, which divides the logits.
            total_updates: Number of optimizer updates of the run, for the learning-rate schedule.
            seed: Seed of the adapters (`config.lora`).
            vocabulary_size: Number of token ids. Later entries of the output layer have probability 0, as in the
                rollouts; None means that all entries are tokens.
            timeout_s: Deadline of a collective of `config.sequence_parallel`; None for the default of the backend.
            teacher_weight: Output layer of a teacher that sends hidden states, [V, G]; None for others.

        Raises:
            ConfigError: ZeRO does not support the settings, the student lacks a layer that needs an adapter, or its
                heads cannot be divided by `config.sequence_parallel`.
            EngineError: The engine cannot compute correct log-probabilities for this model.
        """
        self._model_path = Path(model_path)
        self._config = config
        self._objective = objective
        self._total_updates = total_updates
        self._applied_updates = 0
        self._nonfinite_in_a_row = 0
        self._entropy = EntropyController(objective.config.entropy_bonus)
        self._totals: UpdateTotals | None = None
        model = load_policy_model(
            model_path,
            dtype=dtype,
            temperature=temperature,
            chunk_tokens=config.logprob_chunk_tokens,
            activation_checkpointing=config.activation_checkpointing,
            lora=config.lora,
            seed=seed,
            vocabulary_size=vocabulary_size,
            teacher_weight=teacher_weight,
        )
        self._teacher_weight = teacher_weight
        self._engine = start_deepspeed(model, config, bfloat16=dtype == torch.bfloat16)
        self._checkpoint_engine = self._engine.checkpoint_engine = SafeCheckpointEngine()
        self._device = torch.device(self._engine.device)
        self._group = SequenceGroup(self._policy.causal_lm, config.sequence_parallel, timeout_s=timeout_s)

    def policy_logprobs(self, batch: TrainingBatch) -> Tensor:
        """Return the log-probability of every target of a row, float32 [S], without gradient. Collective."""
        row = padded_row(batch, self._group.size)
        own = self._group.own_slice(len(row.token_ids))
        with torch.no_grad():
            positions = torch.arange(own.start, own.stop, device=self._device)
            logprobs = self._forward(row, own, positions, None, with_entropy=False)[0]
            return self._group.gathered(logprobs)[: len(batch.token_ids)]

    def accumulate(self, batch: TrainingBatch, counts: BatchCounts) -> None:
        """Run forward and backward of one micro-batch and add its gradient to the accumulated one. Collective.

        Nothing is averaged here: the token weights of the batch contain every normalizer.

        Args:
            batch: One row of packed sequences, the same one on all ranks of a sequence group.
            counts: Token counts of the batch, for the metrics.
        """
        batch = padded_row(batch, self._group.size)
        own = self._group.own_slice(len(batch.token_ids))
        # Prompt tokens have weight 0, so the output layer skips them. A slice without trained tokens keeps one token,
        # because ZeRO needs every parameter in the graph.
        trained = torch.from_numpy(batch.weights[own]).nonzero().flatten()
        positions = own.start + (trained if len(trained) else torch.zeros(1, dtype=torch.int64)).to(self._device)
        select, select_optional = (
            functools.partial(selected, positions),
            functools.partial(selected_optional, positions),
        )
        config = self._objective.config
        support_ids = select_optional(batch.support_ids, batch.support_size)
        policy, support, entropies, divergences, teacher = self._forward(
            batch,
            own,
            positions,
            support_ids,
            with_entropy=config.entropy_bonus.is_on,
            teacher_hidden=trained_hidden_states(batch, own, self._teacher_weight, self._device),
        )
        sampled, weights = select(batch.behaviour_logprobs), select(batch.weights)
        # With one update per step the policy equals pi_old in its only forward pass, so recomputing pi_old is free.
        behaviour = policy.detach() if self._config.pi_old == "recompute" else sampled
        output = self._objective.packed(
            policy_logprobs=policy,
            behaviour_logprobs=behaviour,
            teacher_logprobs=select_optional(batch.teacher_logprobs) if teacher is None else teacher,
            advantages=select(batch.advantages),
            weights=weights,
            extras=Extras(
                sampler_logprobs=sampled,
                reference_logprobs=select_optional(batch.reference_logprobs),
                entropies=entropies,
                is_imitated=select_optional(batch.is_imitated),
                support_logprobs=support,
                teacher_support_logprobs=select_optional(batch.teacher_support_logprobs, batch.support_size),
                teacher_tail_logprobs=select_optional(batch.teacher_tail_logprobs),
                teacher_divergences=divergences,
                progress=self._progress,
                entropy_coefficient=self._entropy.coefficient,
            ),
        )
        # Undoes DeepSpeed's average over ranks, which cannot be disabled at ZeRO stage 3. Done alike for all stages.
        self._engine.backward(output.loss * dist.get_world_size())
        gap = (policy.detach() - sampled).abs().where(weights > 0, 0)
        self._add_to_totals(output, gap, counts)

    def step(self) -> UpdateResult:
        """Apply the accumulated gradient. Collective; all ranks return the same result or raise the same error.

        Raises:
            TeacherScoresError: Too many teacher scores are missing. The weights are unchanged.
            NonFiniteGradientError: `learner.max_nonfinite_steps` updates in a row had a NaN or infinite gradient.
            EngineError: No micro-batch was accumulated.
        """
        if self._totals is None:
            raise EngineError(
                "an update requires at least one micro-batch; got none. Pass a dummy micro-batch if no sample is left"
            )
        totals, self._totals = self._totals.reduced(), None
        counts = totals.counts
        for missing in (counts.missing_teacher_tokens, counts.missing_reference_tokens):
            check_missing_teacher(missing, counts.response_tokens, self._config.max_missing_teacher_fraction)
        lr = learning_rate(self._config.optimizer, self._applied_updates, self._total_updates)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        coefficient = self._entropy.coefficient
        self._count_update(applied, totals)
        return UpdateResult(
            applied=applied,
            gradient_norm=float(self._engine.get_global_grad_norm()),
            lr=lr,
            entropy_coefficient=coefficient,
            totals=totals,
        )

    def gather_weights(self) -> dict[str, Tensor] | None:
        """Return all weights on the CPU of rank 0, by Hugging Face name; None on other ranks. Collective.

        Adapters are added to their weights. Tied embeddings appear once. Peak memory of a GPU: its shard, one bucket of
        gathered parameters, and one weight with its adapter added. The trained weights do not change, since an adapter
        is added to a copy of its weight.
        """
        return _copy_to_first(self.weight_source())

    def gather_adapters(self) -> dict[str, Tensor] | None:
        """Return A and B of every adapter on the CPU of rank 0, by peft's names; None on other ranks. Collective.

        The result is empty without `config.lora`.
        """
        adapters = self._policy.adapters
        return _copy_to_first(self._source_of(() if adapters is None else adapters.weights()))

    def weight_source(self) -> WeightSource:
        """Return a source of all weights, adapters added, on this rank's device."""
        return self._source_of(student_weights(self._policy.causal_lm, self._policy.adapters))

    def save(self, directory: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint: trained weights, optimizer state, position in the schedule, and `state`. Collective.

        Frozen weights are left out, because the trainer loads them from the initial model. The files are on disk and
        listed in a manifest when this returns.

        Args:
            directory: Directory that all ranks can write to.
            state: State of the caller, returned by `load`.

        Raises:
            StorageError: The disk refused a write. The directory has no manifest then.
        """
        own = {
            "applied_updates": self._applied_updates,
            "nonfinite_in_a_row": self._nonfinite_in_a_row,
            "entropy": self._entropy.state(),
        }
        client_state = {"trainer": own, "caller": state}
        write_checkpoint(
            self._checkpoint_engine,
            directory,
            lambda: self._engine.save_checkpoint(
                str(directory), tag=_CHECKPOINT_TAG, client_state=client_state, exclude_frozen_parameters=True
            ),
        )

    def load(self, directory: Path) -> dict[str, Any]:
        """Load a checkpoint of `save` and return the caller's state. Collective.

        The number of ranks, the ZeRO stage and the adapters must be those of the checkpoint.

        Raises:
            CorruptFileError: The checkpoint is incomplete, damaged, or holds more than tensors and plain values.
            EngineError: The directory has no checkpoint, or the checkpoint has other trained weights.
        """
        require_intact(directory)
        path, loaded = self._engine.load_checkpoint(str(directory), tag=_CHECKPOINT_TAG, custom_load_fn=_load_trained)
        if path is None:
            raise EngineError(f"expected a learner checkpoint in {directory}; found none")
        self._applied_updates = loaded["trainer"]["applied_updates"]
        self._nonfinite_in_a_row = loaded["trainer"]["nonfinite_in_a_row"]
        self._entropy.restore(loaded["trainer"]["entropy"])
        return dict(loaded["caller"])

    def export(self, directory: Path, *, base_model: str | None = None) -> None:
        """Write a Hugging Face model directory with tokenizer, which transformers and vLLM can load. Collective.

        The directory appears complete or not at all. Adapters are added to the weights, and are also written separately
        to the subdirectory `adapter`.

        Args:
            directory: Directory to write.
            base_model: Base model recorded with the adapters. Defaults to the directory of the initial model.
        """
        weights, adapter_weights = self.gather_weights(), self.gather_adapters()
        if weights is not None and adapter_weights is not None:
            adapters = self._policy.adapters
            adapter = None
            if adapters is not None:
                adapter = AdapterExport(
                    settings=adapters.settings, weights=adapter_weights, base_model=base_model or str(self._model_path)
                )
            export_model(weights, self._model_path, directory, adapter=adapter)

    def _source_of(self, weights: Iterable[StudentWeight]) -> WeightSource:
        return WeightSource(weights, is_partitioned=self._config.zero_stage == 3)

    @property
    def _policy(self) -> PolicyModel:
        model: PolicyModel = self._engine.module
        return model

    @property
    def _progress(self) -> float:
        """Progress of the run, from 0 at the first update to 1 at the last."""
        return min(1.0, self._applied_updates / max(1, self._total_updates - 1))

    def _forward(
        self,
        batch: TrainingBatch,
        own: slice,
        positions: Tensor,
        support_ids: Tensor | None,
        *,
        with_entropy: bool,
        teacher_hidden: Tensor | None = None,
    ) -> HeadOutput:
        """Run the model on this rank's slice of a row, and the output layer on some positions of the slice."""
        token_ids, position_ids = (
            torch.from_numpy(column[own]).to(self._device, non_blocking=True)
            for column in (batch.token_ids, batch.position_ids)
        )
        layout = PackedLayout.from_offsets(batch.sequence_offsets, self._device)
        targets = selected(positions, batch.target_ids)
        inside = positions - own.start
        output: HeadOutput = self._engine(
            token_ids, position_ids, layout, inside, targets, support_ids, with_entropy, teacher_hidden
        )
        return output

    def _add_to_totals(self, output: ObjectiveOutput, gap: Tensor, counts: BatchCounts) -> None:
        totals = UpdateTotals(
            sums=output.sums,
            loss=output.loss.detach(),
            gap_sum=gap.sum(dtype=torch.float64),
            gap_max=gap.max(),
            counts=counts if self._group.counts else BatchCounts(),
            micro_batches=int(self._group.counts),
        )
        if self._totals is None:
            self._totals = totals
        else:
            self._totals.add(totals)

    def _count_update(self, applied: bool, totals: UpdateTotals) -> None:
        if applied:
            self._applied_updates += 1
            self._nonfinite_in_a_row = 0
            if "objective/entropy" in (means := totals.sums.means()):
                self._entropy.observe(means["objective/entropy"])
            return
        self._nonfinite_in_a_row += 1
        logger.warning(
            "gradient is not finite: update skipped in_a_row=%d applied_updates=%d",
            self._nonfinite_in_a_row,
            self._applied_updates,
        )
        budget = self._config.max_nonfinite_steps - 1
        if decide(Event.UPDATE_NOT_FINITE, happened=self._nonfinite_in_a_row, budget=budget) is Action.END:
            raise NonFiniteGradientError(
                f"{self._nonfinite_in_a_row} updates in a row had NaN or infinite gradients "
                f"(learner.max_nonfinite_steps); the weights are those after update {self._applied_updates}. "
                "Lower the learning rate, or check the log-probabilities of the last batch"
            )


def _copy_to_first(weights: WeightSource) -> dict[str, Tensor] | None:
    """Walk a weight source and copy it to the CPU of rank 0. Return None on other ranks. Collective."""
    copied: dict[str, Tensor] = {}
    for name, tensor in weights:
        if dist.get_rank() == 0:
            copied[name] = tensor.to("cpu", copy=True)
    return copied if dist.get_rank() == 0 else None


def _load_trained(src: dict[str, Tensor], dst: PolicyModel) -> None:
    """Load the weights of a checkpoint and check that only frozen ones are missing.

    DeepSpeed passes the arguments by these names.
    """
    missing, unexpected = dst.load_state_dict(src, strict=False)
    frozen = {name for name, parameter in dst.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    if others := sorted({*missing} - frozen) + list(unexpected):
        raise EngineError(
            f"the trained weights of the checkpoint differ from those of the model, for example {others[0]}; "
            "resume with the learner.lora settings of the run"
        )
