"""Output layer of a causal language model, for engines that compute selected log-probabilities themselves."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from rlad.errors import EngineError
from rlad.models.output_layer import logit_transforms


def plain_output_weight(causal_lm: PreTrainedModel) -> Tensor:
    """Return the output weight, [vocabulary, hidden], of a model whose logits are exactly `hidden @ weight.T`.

    Raises:
        EngineError: The model transforms its logits, or its output layer has a bias.
    """
    output_layer = causal_lm.get_output_embeddings()
    transforms = logit_transforms(causal_lm.config)
    if transforms or getattr(output_layer, "bias", None) is not None:
        raise EngineError(
            "this engine requires a model whose logits are `hidden @ weight.T`; "
            f"got {transforms or 'an output layer with a bias'}: use the vllm engine"
        )
    weight: Tensor = output_layer.weight
    return weight
