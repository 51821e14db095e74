"""What a model's memory, limits and speed follow from, read off its config.json."""

from __future__ import annotations

from dataclasses import dataclass

from rlad.config.lora import LoraConfig
from rlad.errors import RladError
from rlad.models.references import resolve_model
from rlad.starters import is_missing_starter

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What memory, limits and speed follow from.

    Attributes:
        parameters: their number, tied ones counted once.
        attention_width: entries of one token's queries in one layer: heads times their size.
        kv_values_per_token: key and value entries of one token over all layers.
        max_tokens: longest sequence the model was made for.
        linear_layers: name, and inputs plus outputs, of each linear layer but the output layer: those that can have an adapter.
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
        """How many have a gradient and optimizer state: all, or those of adapters, `rank` for each input and output of a layer."""
        if lora is None:
            return self.parameters
        return lora.rank * sum(size for name, size in self.linear_layers if lora.is_target(name))


def shape_of(path: str) -> ModelShape | None:
    """The model's shape from its config.json, with parameters counted on the meta device; None if it is not on this machine."""
    if is_missing_starter(path):
        return None
    try:
        directory = resolve_model(path)
    except RladError:
        return None  # whoever needs the model says what is wrong with it
    import torch  # seconds that only a model which is there is worth
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
