"""Size and architecture of a model, read from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.resolution.models import ModelFiles
from rlad.config.lora import LoraConfig
from rlad.errors import ModelUnreachableError, RladError
from rlad.models.architectures import known_architecture

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
        heads: Query heads of a layer; 0 if unknown.
        kv_heads: Key-value heads of a layer; 0 if unknown.
        is_from_table: Whether the shape comes from the built-in table, because the model's hub cannot be reached.
    """

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    attention_width: int
    kv_values_per_token: int
    max_tokens: int
    linear_layers: tuple[tuple[str, int], ...] = ()
    heads: int = 0
    kv_heads: int = 0
    is_from_table: bool = False

    def trained_parameters(self, lora: LoraConfig | None) -> int:
        """Return the number of trained parameters: all, or `rank` for each input and output of adapted layers."""
        if lora is None:
            return self.parameters
        return lora.rank * sum(size for name, size in self.linear_layers if lora.is_target(name))


def shape_of(path: str, files: ModelFiles | None = None) -> ModelShape | None:
    """Return the shape of a model; None if nothing is known about it.

    It is read from `config.json`, without the weights. If the model's hub cannot be reached, it comes from the built-in
    table of well-known architectures. Parameters are counted on PyTorch's meta device, so no weights are allocated.

    Args:
        path: Model reference.
        files: Models that have been looked up already.
    """
    found = files or ModelFiles()
    try:
        directory = found.directory(path)
    except RladError as error:  # callers that need the model report the error
        known = known_architecture(path) if isinstance(error, ModelUnreachableError) else None
        return None if known is None else shape_from_table(known)
    from transformers import AutoConfig  # imported late: takes seconds, and is not needed for a missing model

    try:
        return shape_from(AutoConfig.from_pretrained(str(directory), trust_remote_code=False))
    except (OSError, ValueError):
        return None


def shape_from_table(settings: Mapping[str, Any]) -> ModelShape:
    """Return the shape of a model in the built-in table, from its entry."""
    from transformers import AutoConfig

    return replace(shape_from(AutoConfig.for_model(**settings)), is_from_table=True)


def shape_from(full_config: Any) -> ModelShape:
    """Return the shape of a model with a configuration of transformers. Of several models it is the language model."""
    import torch  # imported late: takes seconds
    from transformers import AutoModelForCausalLM

    config = full_config.get_text_config()
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
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        linear_layers=tuple(
            (name, module.in_features + module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
        ),
    )
