"""LoRA students: peft adapters on the linear layers of a frozen model (Hu et al., arXiv:2106.09685).

An adapted layer computes W x + scale B A x, with scale = alpha / R. Shape letters: O outputs and I inputs of a layer,
R rank.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlad.config.lora import LoraConfig
from rlad.errors import ConfigError

logger = logging.getLogger(__name__)

# peft's default adapter name, and its prefix for parameter names in an adapter file.
_ADAPTER = "default"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """LoRA adapter of one weight.

    Attributes:
        a: Matrix A, [R, I].
        b: Matrix B, [O, R].
        scale: Factor of B A, alpha / R.
    """

    a: nn.Parameter
    b: nn.Parameter
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """Return `weight + scale B A`, [O, I], computed in float32 and rounded once to the dtype of `weight`.

        Args:
            weight: Weight of the layer, [O, I]. It is not modified.
        """
        return torch.addmm(weight.float(), self.b.float(), self.a.float(), alpha=self.scale).to(weight.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudentWeight:
    """Weight of the student, with its adapter.

    Attributes:
        name: Name without adapters: the Hugging Face state-dict name, or peft's name for an adapter's own weight.
        parameter: Parameter of the model.
        adapter: Adapter to add to the parameter, if any.
    """

    name: str
    parameter: nn.Parameter
    adapter: Adapter | None = None

    @property
    def parts(self) -> list[nn.Parameter]:
        """Parameters that must be gathered before `value` is called."""
        return [self.parameter] if self.adapter is None else [self.parameter, self.adapter.a, self.adapter.b]

    def value(self) -> Tensor:
        """Return the weight on the parameter's device: the parameter's own memory, or a new tensor with the adapter."""
        weight = self.parameter.detach()
        return weight if self.adapter is None else self.adapter.added_to(weight)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapters:
    """All adapters of a model.

    Attributes:
        by_layer: Adapters by the name of their linear layer.
        settings: peft's `LoraConfig`.
    """

    by_layer: Mapping[str, Adapter]
    settings: Any

    def weights(self) -> Iterator[StudentWeight]:
        """Yield the weights of all adapters, by their names in peft's adapter file."""
        for layer, adapter in self.by_layer.items():
            yield StudentWeight(name=f"{_PREFIX}{layer}.lora_A.weight", parameter=adapter.a)
            yield StudentWeight(name=f"{_PREFIX}{layer}.lora_B.weight", parameter=adapter.b)


def add_adapters(causal_lm: PreTrainedModel, lora: LoraConfig, *, seed: int) -> Adapters:
    """Freeze a model's weights and add adapters to its linear layers. B starts at zero, so the outputs do not change.

    Args:
        causal_lm: Model to change in place.
        lora: LoRA configuration.
        seed: Seed of A. The same seed gives the same adapters on all ranks and after a restart.

    Raises:
        ConfigError: The model lacks a target module, or the module is not a linear layer.
    """
    # Imported here because the import takes two seconds.
    import peft

    linear = linear_layers(causal_lm)
    if unknown := lora.targets_without(list(linear)):
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(
            f"learner.lora.target_modules: the student has no linear layer {unknown[0]}; choose from {', '.join(ends)}"
        )
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, causal_lm, adapter_name=_ADAPTER)
    layers = {
        name: module for name, module in causal_lm.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    if others := layers.keys() - linear.keys():
        raise ConfigError(
            f"learner.lora.target_modules: {min(others)} is not an adaptable linear layer; "
            "name linear layers between the embedding and the output layer"
        )
    by_layer = {
        name: Adapter(a=layer.lora_A[_ADAPTER].weight, b=layer.lora_B[_ADAPTER].weight, scale=layer.scaling[_ADAPTER])
        for name, layer in layers.items()
    }
    trained = sum(adapter.a.numel() + adapter.b.numel() for adapter in by_layer.values())
    logger.info("adapters added layers=%d rank=%d trained_parameters=%d", len(by_layer), lora.rank, trained)
    return Adapters(by_layer=by_layer, settings=settings)


def linear_layers(causal_lm: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the layers that can have an adapter, by name: all linear layers except the output layer."""
    output = causal_lm.get_output_embeddings()
    return {
        name: module
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    }


def student_weights(causal_lm: nn.Module, adapters: Adapters | None) -> Iterator[StudentWeight]:
    """Yield every weight of the student once, in the model's order, by its name without adapters."""
    if adapters is None:
        yield from (StudentWeight(name=name, parameter=parameter) for name, parameter in causal_lm.named_parameters())
        return
    of_adapters = {id(weight.parameter) for weight in adapters.weights()}
    for name, parameter in causal_lm.named_parameters():
        if id(parameter) not in of_adapters:
            # peft replaces an adapted layer by a wrapper that holds the original layer as `base_layer`.
            layer, is_adapted, leaf = name.rpartition(".base_layer.")
            adapter = adapters.by_layer[layer] if is_adapted and leaf == "weight" else None
            yield StudentWeight(name=f"{layer}.{leaf}" if is_adapted else name, parameter=parameter, adapter=adapter)
