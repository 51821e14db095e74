"""Size and architecture of a model, read from its config.json."""

from __future__ import annotations

from dataclasses import dataclass

from rlad.config.lora import LoraConfig
from rlad.errors import RladError
from rlad.models.references import resolve_model
from rlad.starters import is_missing_starter

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Size and architecture of a model. Memory, limits and speed follow from it.

    Attributes:
        parameters: Number of parameters, with tied ones counted once.
        hidden: Size of the hidden state.
        layers: Number of transformer layers.
        vocabulary: Entries of the output layer.
        attention_width: Query entries of one token in one layer: number of heads times head size.
        kv_values_per_token: Key and value entries of one token over all layers.
        max_tokens: Maximum sequence length.
        linear_layers: Name, and inputs plus outputs, of each linear layer that can have an adapter: all but the output
            layer.
    """

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    attention_width: int
    kv_values_per_token: int
    max_tokens: int
    linear_layers: tuple[tuple[str, int], ...] = ()

    def trained_parameters(self, lora: LoraConfig | None) -> int:
        """Return the number of trained parameters: all, or `rank` for each input and output of adapted layers."""
        if lora is None:
            return self.parameters
        return lora.rank * sum(size for name, size in self.linear_layers if lora.is_target(name))


def shape_of(path: str) -> ModelShape | None:
    """Return the shape of the model at `path`; None if the model is not on this machine.

    Parameters are counted on PyTorch's meta device, so no weights are allocated.
    """
    if is_missing_starter(path):
        return None
    try:
        directory = resolve_model(path)
    except RladError:
        return None  # callers that need the model report the error
    import torch  # imported late: takes seconds, and is not needed if the model is missing
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(directory))
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        attention_width=config.num_attention_heads * head,
        kv_values_per_token=2 * config.num_hidden_layers * config.num_key_value_heads * head,
        max_tokens=config.max_position_embeddings,
        linear_layers=tuple(
            (name, module.in_features + module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
        ),
    )
