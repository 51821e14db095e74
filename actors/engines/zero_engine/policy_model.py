"""The student as the learner runs it: rows of packed sequences in, log-probabilities of chosen tokens out, logits never."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from actors.engines.hf_engine.output_layer import plain_output_weight
from actors.engines.hf_engine.packed_attention import PACKED_ATTENTION, PackedLayout
from actors.engines.zero_engine.lora import Adapters, add_adapters
from rlad.config.lora import LoraConfig
from rlad.logprobs import token_statistics


class _LogprobHead(nn.Module):
    """Takes the output layer's place and its weight, under the same name. ZeRO-3 gathers a weight when its module is called."""

    def __init__(self, weight: nn.Parameter, temperature: float, chunk_tokens: int) -> None:
        super().__init__()
        self.weight = weight
        self._temperature = temperature
        self._chunk_tokens = chunk_tokens

    def forward(
        self, hidden: Tensor, target_ids: Tensor, support_ids: Tensor | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # Its fields as a plain tuple: DeepSpeed rebuilds what its hooks see, and cannot rebuild a named one.
        logprobs, support_logprobs, entropies = token_statistics(
            hidden,
            self.weight,
            target_ids,
            support_ids=support_ids,
            with_entropy=with_entropy,
            temperature=self._temperature,
            chunk_tokens=self._chunk_tokens,
        )
        return logprobs, support_logprobs, entropies

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # A checkpoint without frozen weights leaves them out by their first name, and that of a tied one is the embedding's.
        if self.weight.requires_grad:
            super()._save_to_state_dict(destination, prefix, keep_vars)


class PolicyModel(nn.Module):
    """A causal language model that gives log-probabilities of given tokens.

    Attributes:
        causal_lm: the transformers model; its parameters keep their names below this one.
        adapters: what of it is trained; None where all of it is.
    """

    def __init__(
        self, causal_lm: PreTrainedModel, *, temperature: float, chunk_tokens: int, adapters: Adapters | None = None
    ) -> None:
        """Raises EngineError for a model whose logits are not `hidden @ weight.T`."""
        super().__init__()
        weight = cast(nn.Parameter, plain_output_weight(causal_lm))
        causal_lm.set_output_embeddings(_LogprobHead(weight, temperature, chunk_tokens))
        self.causal_lm = causal_lm
        self.adapters = adapters

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those that are not frozen."""
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
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the chosen positions predict, at the sampling temperature: the fields of `TokenStatistics`.

        Args:
            token_ids, position_ids: int64 [S], one row of packed sequences.
            layout: where its sequences lie.
            positions: int64 [N], the positions of the row that matter; the output layer runs on no other.
            target_ids: int64 [N], the token that each of them predicts.
            support_ids: int64 [N, K], further tokens whose log-probabilities are wanted.
            with_entropy: whether entropies are wanted.
        """
        outputs = self.causal_lm.base_model(
            input_ids=token_ids[None], position_ids=position_ids[None], use_cache=False, packed_layout=layout
        )
        hidden = outputs.last_hidden_state[0].index_select(0, positions)
        return cast(
            "tuple[Tensor, Tensor | None, Tensor | None]",
            self.causal_lm.get_output_embeddings()(hidden, target_ids, support_ids, with_entropy),
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
) -> PolicyModel:
    """Load a Hugging Face model directory for training.

    Dropout is turned off whatever the model's configuration says: sampling engines have none, and a random policy has no likelihood ratio.

    Args:
        lora: with it only adapters are trained.
        seed: of the adapters.
    """
    config = AutoConfig.from_pretrained(model_path)
    for name in [name for name in vars(config) if "dropout" in name or name.endswith("_pdrop")]:
        setattr(config, name, 0.0)
    causal_lm = AutoModelForCausalLM.from_pretrained(
        model_path, config=config, dtype=dtype, attn_implementation=PACKED_ATTENTION
    )
    if activation_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapters = None if lora is None else add_adapters(causal_lm, lora, seed=seed)
    return PolicyModel(causal_lm, temperature=temperature, chunk_tokens=chunk_tokens, adapters=adapters).train()
