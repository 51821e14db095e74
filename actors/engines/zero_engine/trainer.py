"""The learner's engine: one student under DeepSpeed ZeRO, fed packed micro-batches, stepped when the caller says so.

It knows nothing of Ray. `torch.distributed` is either up already, or this is the only rank.
"""

from __future__ import annotations

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
from actors.engines.zero_engine.clipped_adamw import ClippedAdamW
from actors.engines.zero_engine.config import deepspeed_config, learning_rate
from actors.engines.zero_engine.export import AdapterExport, export_model
from actors.engines.zero_engine.lora import StudentWeight, student_weights
from actors.engines.zero_engine.policy_model import PolicyModel, load_policy_model
from actors.engines.zero_engine.update_metrics import UpdateResult, UpdateTotals
from rlad.config.learner import LearnerConfig
from rlad.errors import EngineError, NonFiniteGradientError
from rlad.logprobs import TokenStatistics
from rlad.objectives import EntropyController, Extras, Objective, check_missing_teacher
from rlad.packing import BatchCounts
from rlad.training_batch import TrainingBatch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported

import deepspeed

from actors.engines.zero_engine.weight_source import StudentWeights  # imports DeepSpeed

# DeepSpeed 0.19 calls a collective by its old name, with every gradient bucket.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)

logger = logging.getLogger(__name__)

_CHECKPOINT_TAG = "zero"


class ZeroTrainer:
    """One rank of the learner. Methods marked collective must be called by all ranks, the same number of times, in the same order."""

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
    ) -> None:
        """Load the student and hand it to DeepSpeed. Collective.

        Args:
            model_path: Hugging Face model directory.
            dtype: of the weights, float32 or bfloat16; the optimizer keeps float32 masters either way. Published and exported weights have it too.
            temperature: sampling temperature of the rollouts; the logits are divided by it.
            total_updates: optimizer steps of the whole run, for the learning-rate schedule.
            seed: of what the student begins with besides its weights: adapters (`config.lora`).

        Raises:
            ConfigError: settings that ZeRO cannot honour, or adapters for layers that the student does not have.
            EngineError: a model whose log-probabilities would be wrong here.
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
        )
        self._engine = _start_deepspeed(model, config, bfloat16=dtype == torch.bfloat16)
        self._device = torch.device(self._engine.device)

    def policy_logprobs(self, batch: TrainingBatch) -> Tensor:
        """Log-probability of every target of a row under the present weights, without gradient: float32 [S]. Collective."""
        with torch.no_grad():
            return self._forward(
                batch, torch.arange(len(batch.token_ids), device=self._device), None, with_entropy=False
            ).logprobs

    def accumulate(self, batch: TrainingBatch, counts: BatchCounts) -> None:
        """Forward and backward of one micro-batch; its gradient adds to what is there. Collective.

        Nothing is averaged: the batch's weights carry every normaliser.
        """
        # Prompt tokens weigh nothing, so the output layer is not run on them. A dummy batch keeps one: ZeRO wants every parameter in the graph.
        trained = torch.from_numpy(batch.weights).nonzero().flatten()
        positions = (trained if len(trained) else torch.zeros(1, dtype=torch.int64)).to(self._device)

        def chosen(column: Any, width: int = 0) -> Tensor:
            values = torch.from_numpy(column).to(self._device, non_blocking=True)
            return (values.view(-1, width) if width else values).index_select(0, positions)

        def chosen_if_there(column: Any, width: int = 0) -> Tensor | None:
            return None if column is None else chosen(column, width)

        config = self._objective.config
        support_ids = chosen_if_there(batch.support_ids, batch.support_size)
        policy, support, entropies = self._forward(
            batch, positions, support_ids, with_entropy=config.entropy_bonus.is_on
        )
        sampled, weights = chosen(batch.behaviour_logprobs), chosen(batch.weights)
        # With one update a step the policy still is pi_old at its only forward pass, so recomputing pi_old costs nothing.
        behaviour = policy.detach() if self._config.pi_old == "recompute" else sampled
        output = self._objective.packed(
            policy_logprobs=policy,
            behaviour_logprobs=behaviour,
            teacher_logprobs=chosen_if_there(batch.teacher_logprobs),
            advantages=chosen(batch.advantages),
            weights=weights,
            extras=Extras(
                sampler_logprobs=sampled,
                reference_logprobs=chosen_if_there(batch.reference_logprobs),
                entropies=entropies,
                is_imitated=chosen_if_there(batch.is_imitated),
                support_logprobs=support,
                teacher_support_logprobs=chosen_if_there(batch.teacher_support_logprobs, batch.support_size),
                teacher_tail_logprobs=chosen_if_there(batch.teacher_tail_logprobs),
                progress=self._progress,
                entropy_coefficient=self._entropy.coefficient,
            ),
        )
        # DeepSpeed averages over ranks, at ZeRO 3 without a way to turn it off: undone here, for all stages alike.
        self._engine.backward(output.loss * dist.get_world_size())
        gap = (policy.detach() - sampled).abs().where(weights > 0, 0)
        totals = UpdateTotals(
            sums=output.sums,
            loss=output.loss.detach(),
            gap_sum=gap.sum(dtype=torch.float64),
            gap_max=gap.max(),
            counts=counts,
            micro_batches=1,
        )
        if self._totals is None:
            self._totals = totals
        else:
            self._totals.add(totals)

    def step(self) -> UpdateResult:
        """Apply what was accumulated. Collective, and all ranks come to the same result or error.

        Raises:
            TeacherScoresError: too many teacher scores are missing; the weights are as before.
            NonFiniteGradientError: this was one too many updates in a row with a NaN or infinite gradient.
            EngineError: nothing was accumulated.
        """
        if self._totals is None:
            raise EngineError(
                "an optimizer step needs at least one micro-batch, a dummy one where there is nothing to train on"
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
        """The whole model on the CPU of rank 0 under its Hugging Face names, adapters added; None on other ranks. Collective.

        Tied embeddings appear once. No GPU ever holds more than its shard, one bucket of whole parameters and the sum of one of them with its adapter. What
        is trained stays as it is: an adapter is added to a copy of its weight.
        """
        return _on_first(self.student_weights())

    def gather_adapters(self) -> dict[str, Tensor] | None:
        """A and B of every adapted layer on the CPU of rank 0 under peft's names; none without `config.lora`. None on other ranks. Collective."""
        adapters = self._policy.adapters
        return _on_first(self._walk(() if adapters is None else adapters.weights()))

    def student_weights(self) -> StudentWeights:
        """The weights as they are whenever they are walked, adapters added, on this rank's device."""
        return self._walk(student_weights(self._policy.causal_lm, self._policy.adapters))

    def save(self, directory: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint: trained weights, optimizer state, the place in the schedule, and `state`. Collective; all ranks see the directory.

        Frozen weights are not in it: they are those of the model that the trainer was made with.
        """
        own = {
            "applied_updates": self._applied_updates,
            "nonfinite_in_a_row": self._nonfinite_in_a_row,
            "entropy": self._entropy.state(),
        }
        client_state = {"trainer": own, "caller": state}
        self._engine.save_checkpoint(
            str(directory), tag=_CHECKPOINT_TAG, client_state=client_state, exclude_frozen_parameters=True
        )

    def load(self, directory: Path) -> dict[str, Any]:
        """Take up a checkpoint that `save` wrote with the same number of ranks, ZeRO stage and adapters, and return its `state`. Collective.

        Raises:
            EngineError: there is none, or it is of a model that trains other weights.
        """
        path, loaded = self._engine.load_checkpoint(str(directory), tag=_CHECKPOINT_TAG, custom_load_fn=_load_trained)
        if path is None:
            raise EngineError(f"no learner checkpoint in {directory}")
        self._applied_updates = loaded["trainer"]["applied_updates"]
        self._nonfinite_in_a_row = loaded["trainer"]["nonfinite_in_a_row"]
        self._entropy.restore(loaded["trainer"]["entropy"])
        return dict(loaded["caller"])

    def export(self, directory: Path, *, base_model: str | None = None) -> None:
        """Write a Hugging Face model directory with tokenizer that transformers and vLLM load. Collective; appears whole or not at all.

        A student with adapters is there as their sum with its weights, and the adapters alone are in `adapter/`.

        Args:
            base_model: what the adapters say that they belong to; by default the directory that the student was loaded from.
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

    def _walk(self, weights: Iterable[StudentWeight]) -> StudentWeights:
        return StudentWeights(weights, is_partitioned=self._config.zero_stage == 3)

    @property
    def _policy(self) -> PolicyModel:
        model: PolicyModel = self._engine.module
        return model

    @property
    def _progress(self) -> float:
        """Share of the run's updates that are done: 0 in the first, 1 in the last."""
        return min(1.0, self._applied_updates / max(1, self._total_updates - 1))

    def _forward(
        self, batch: TrainingBatch, positions: Tensor, support_ids: Tensor | None, *, with_entropy: bool
    ) -> TokenStatistics:
        token_ids, position_ids, target_ids = (
            torch.from_numpy(column).to(self._device, non_blocking=True)
            for column in (batch.token_ids, batch.position_ids, batch.target_ids)
        )
        layout = PackedLayout.from_offsets(batch.sequence_offsets, self._device)
        targets = target_ids.index_select(0, positions)
        return TokenStatistics(
            *self._engine(token_ids, position_ids, layout, positions, targets, support_ids, with_entropy)
        )

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
        if self._nonfinite_in_a_row >= self._config.max_nonfinite_steps:
            raise NonFiniteGradientError(
                f"{self._nonfinite_in_a_row} optimizer steps in a row had NaN or infinite gradients (learner.max_nonfinite_steps); the weights are those "
                f"after update {self._applied_updates}. Lower the learning rate, or look at the log-probabilities of the last batch"
            )


def _on_first(weights: StudentWeights) -> dict[str, Tensor] | None:
    copied: dict[str, Tensor] = {}
    for name, tensor in weights:
        if dist.get_rank() == 0:
            copied[name] = tensor.to("cpu", copy=True)
    return copied if dist.get_rank() == 0 else None


def _load_trained(src: dict[str, Tensor], dst: PolicyModel) -> None:
    """Take up a checkpoint's weights; those that it lacks have to be frozen ones. DeepSpeed names the arguments."""
    missing, unexpected = dst.load_state_dict(src, strict=False)
    frozen = {name for name, parameter in dst.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    if others := sorted({*missing} - frozen) + list(unexpected):
        raise EngineError(
            f"the checkpoint is of a model that trains other weights, for example {others[0]}: continue with the run's own learner.lora"
        )


def _start_deepspeed(model: PolicyModel, config: LearnerConfig, *, bfloat16: bool) -> Any:
    on_gpu, trained = torch.cuda.is_available(), model.trained_parameters()
    settings = deepspeed_config(
        config, bfloat16=bfloat16, on_gpu=on_gpu, num_parameters=sum(parameter.numel() for parameter in trained)
    )
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed refuses to start without
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=0, world_size=1)
    # Its shared-memory collectives are compiled on first use, and a rank that dies in one leaves the others spinning: gloo notices.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    optimizer = None
    if config.zero_stage == 0:
        adamw = settings.pop("optimizer")["params"]
        adamw.pop("torch_adam")
        optimizer = ClippedAdamW(trained, max_gradient_norm=config.optimizer.max_gradient_norm, **adamw)
        settings["gradient_clipping"] = 0.0  # left out, it would be 1
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=trained, optimizer=optimizer, config=settings, dist_init_required=False
    )
    return engine
