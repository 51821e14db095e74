"""The output layer of a causal language model, for engines that compute selected log-probabilities themselves."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from rlad.errors import EngineError

# What some architectures do to their logits after the output layer, which `hidden @ weight.T` leaves out.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


def plain_output_weight(causal_lm: PreTrainedModel) -> Tensor:
    """The weight [vocabulary, hidden] of a model whose logits are `hidden @ weight.T` and nothing else.

    Raises:
        EngineError: they are something else.
    """
    output_layer = causal_lm.get_output_embeddings()
    transforms = {
        name: value
        for name in _LOGIT_TRANSFORMS
        if (value := getattr(causal_lm.config, name, None)) not in (None, 1, 1.0)
    }
    if transforms or getattr(output_layer, "bias", None) is not None:
        raise EngineError(
            f"this model's logits are not `hidden @ weight.T`: {transforms or 'its output layer has a bias'}; use the vllm engine"
        )
    weight: Tensor = output_layer.weight
    return weight
