"""Policy model of the learner: computes log-probabilities of selected tokens from packed rows, without full logits."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from actors.engines.hf_engine.output_layer import plain_output_weight
from actors.engines.hf_engine.packed_attention import PACKED_ATTENTION, PackedLayout
from actors.engines.zero_engine.lora import Adapters, add_adapters
from rlad.config.lora import LoraConfig
from rlad.distributions.hidden_state_distillation import distillation_statistics
from rlad.errors import EngineError
from rlad.logprobs import token_statistics

HeadOutput = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Log-probabilities, support, entropies, divergences from the teacher, teacher log-probabilities."""


class _LogprobHead(nn.Module):
    """Replaces the output layer of a model and keeps its weight under the same name.

    ZeRO stage 3 gathers a weight when its module is called, so the weight must be used inside a module that owns it.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        temperature: float,
        chunk_tokens: int,
        vocabulary_size: int | None,
        teacher_weight: Tensor | None,
    ) -> None:
        super().__init__()
        # A plain tensor: neither trained nor sharded, nor part of a checkpoint.
        self._teacher_weight = teacher_weight
        self.weight = weight
        self._temperature = temperature
        self._chunk_tokens = chunk_tokens
        self._vocabulary_size = vocabulary_size

    def forward(
        self,
        hidden: Tensor,
        target_ids: Tensor,
        support_ids: Tensor | None,
        with_entropy: bool,
        teacher_hidden: Tensor | None,
    ) -> HeadOutput:
        if teacher_hidden is not None:
            return self._distillation_statistics(hidden, target_ids, with_entropy, teacher_hidden)
        # A plain tuple: DeepSpeed's hooks rebuild the output of a module and cannot rebuild a named tuple.
        logprobs, support_logprobs, entropies = token_statistics(
            hidden,
            self.weight,
            target_ids,
            support_ids=support_ids,
            with_entropy=with_entropy,
            temperature=self._temperature,
            chunk_tokens=self._chunk_tokens,
            vocabulary_size=self._vocabulary_size,
        )
        return logprobs, support_logprobs, entropies, None, None

    def _distillation_statistics(
        self, hidden: Tensor, target_ids: Tensor, with_entropy: bool, teacher_hidden: Tensor
    ) -> HeadOutput:
        if self._teacher_weight is None:
            raise EngineError("the batch has hidden states of the teacher, but the learner has no output layer for it")
        self._teacher_weight = self._teacher_weight.to(hidden.device)
        logprobs, divergences, teacher_logprobs, entropies = distillation_statistics(
            hidden,
            self.weight,
            teacher_hidden,
            self._teacher_weight,
            target_ids,
            with_entropy=with_entropy,
            temperature=self._temperature,
            chunk_tokens=self._chunk_tokens,
            vocabulary_size=self._vocabulary_size,
        )
        return logprobs, None, entropies, divergences, teacher_logprobs

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # DeepSpeed excludes frozen weights from a checkpoint by their first name, which for a tied output layer is the
        # embedding's. Without this check the frozen weight would be saved under the name of the output layer.
        if self.weight.requires_grad:
            super()._save_to_state_dict(destination, prefix, keep_vars)


class PolicyModel(nn.Module):
    """Causal language model that computes log-probabilities of given tokens.

    Attributes:
        causal_lm: transformers model. Its parameters keep their names below this attribute.
        adapters: Trained adapters; None if all weights are trained.
    """

    def __init__(
        self,
        causal_lm: PreTrainedModel,
        *,
        temperature: float,
        chunk_tokens: int,
        adapters: Adapters | None = None,
        vocabulary_size: int | None = None,
        teacher_weight: Tensor | None = None,
    ) -> None:
        """Replace the output layer of a model.

        Args:
            causal_lm: transformers model, changed in place.
            temperature: Sampling temperature, which divides the logits.
            chunk_tokens: Number of tokens whose logits are computed at once.
            adapters: Adapters of the model, if any.
            vocabulary_size: Number of token ids, as for `token_statistics`.
            teacher_weight: Output layer of a teacher that sends hidden states, [V, G]; None for others.

        Raises:
            EngineError: The model's logits are not `hidden @ weight.T`.
        """
        super().__init__()
        weight = cast(nn.Parameter, plain_output_weight(causal_lm))
        causal_lm.set_output_embeddings(
            _LogprobHead(weight, temperature, chunk_tokens, vocabulary_size, teacher_weight)
        )
        self.causal_lm = causal_lm
        self.adapters = adapters

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are not frozen."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        layout: PackedLayout,
        positions: Tensor,
        target_ids: Tensor,
        support_ids: Tensor | None = None,
        with_entropy: bool = False,
        teacher_hidden: Tensor | None = None,
    ) -> HeadOutput:
        """Compute the statistics of selected positions at the sampling temperature.

        Args:
            token_ids: Tokens of one row of packed sequences, int64 [S].
            position_ids: Position of each token in its sequence, int64 [S].
            layout: Layout of the sequences in the row.
            positions: Selected positions of the row, int64 [N]. The output layer runs on these only.
            target_ids: Token predicted at each selected position, int64 [N].
            support_ids: Further tokens to compute log-probabilities of, int64 [N, K].
            with_entropy: Whether to compute entropies.
            teacher_hidden: Last hidden states of the teacher, [N, G]; None if it sends log-probabilities.

        Returns:
            Log-probabilities of the targets, float32 [N]; those of the support, float32 [N, K], or None; entropies,
            float32 [N], or None. With the teacher's hidden states also KL(pi, pi_T), float32 [N], and the teacher's
            log-probabilities of the targets, float32 [N]; without them None.
        """
        outputs = self.causal_lm.base_model(
            input_ids=token_ids[None], position_ids=position_ids[None], use_cache=False, packed_layout=layout
        )
        hidden = outputs.last_hidden_state[0].index_select(0, positions)
        return cast(
            HeadOutput,
            self.causal_lm.get_output_embeddings()(hidden, target_ids, support_ids, with_entropy, teacher_hidden),
        )


def load_policy_model(
    model_path: str,
    *,
    dtype: torch.dtype,
    temperature: float,
    chunk_tokens: int,
    activation_checkpointing: bool,
    lora: LoraConfig | None = None,
    seed: int = 0,
    vocabulary_size: int | None = None,
    teacher_weight: Tensor | None = None,
) -> PolicyModel:
    """Load a Hugging Face model directory for training.

    Dropout is always disabled: the sampling engines have none, and a random policy has no likelihood ratio.

    Args:
        model_path: Hugging Face model directory.
        dtype: Data type of the weights.
        temperature: Sampling temperature, which divides the logits.
        chunk_tokens: Number of tokens whose logits are computed at once.
        activation_checkpointing: Whether to recompute activations in the backward pass.
        lora: LoRA configuration. If given, only adapters are trained.
        seed: Seed of the adapters.
        vocabulary_size: Number of token ids, as for `token_statistics`.
        teacher_weight: Output layer of a teacher that sends hidden states, [V, G]; None for others.
    """
    config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
    for name in [name for name in vars(config) if "dropout" in name or name.endswith("_pdrop")]:
        setattr(config, name, 0.0)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        model_path, config=config, dtype=dtype, attn_implementation=PACKED_ATTENTION, use_safetensors=True
    )
    if activation_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapters = None if lora is None else add_adapters(causal_lm, lora, seed=seed)
    return PolicyModel(
        causal_lm,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        adapters=adapters,
        vocabulary_size=vocabulary_size,
        teacher_weight=teacher_weight,
    ).train()
