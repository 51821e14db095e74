"""LoRA students: peft's adapters beside the linear layers of a frozen model (Hu et al., arXiv:2106.09685).

An adapted layer computes W x + scale B A x, with scale = alpha / R. Shape letters: O outputs and I inputs of a layer, R rank.
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

# What peft calls an adapter that got no name, and puts before a model's names in an adapter's file.
_ADAPTER = "default"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """What is added to one weight: A [R, I] and B [O, R]."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        """`weight + scale B A` in float32, rounded once to the dtype of `weight`; neither is changed."""
        return torch.addmm(weight.float(), self.b.float(), self.a.float(), alpha=self.scale).to(weight.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudentWeight:
    """A weight of the student under the name that others know it by, and what is added to it."""

    name: str
    parameter: nn.Parameter
    adapter: Adapter | None = None

    @property
    def parts(self) -> list[nn.Parameter]:
        """What has to be whole for `value`."""
        return [self.parameter] if self.adapter is None else [self.parameter, self.adapter.a, self.adapter.b]

    def value(self) -> Tensor:
        """On the parameter's device: its own memory, or a tensor of its own with the adapter added."""
        weight = self.parameter.detach()
        return weight if self.adapter is None else self.adapter.added_to(weight)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapters:
    """All adapters of a model.

    Attributes:
        by_layer: by the name of the linear layer.
        settings: peft's `LoraConfig`.
    """

    by_layer: Mapping[str, Adapter]
    settings: Any

    def weights(self) -> Iterator[StudentWeight]:
        """All of them, by the names that peft gives them in an adapter's file."""
        for layer, adapter in self.by_layer.items():
            yield StudentWeight(name=f"{_PREFIX}{layer}.lora_A.weight", parameter=adapter.a)
            yield StudentWeight(name=f"{_PREFIX}{layer}.lora_B.weight", parameter=adapter.b)


def add_adapters(causal_lm: PreTrainedModel, lora: LoraConfig, *, seed: int) -> Adapters:
    """Freeze a model's weights and put adapters beside its linear layers. B begins as zero, so the model computes what it did.

    Args:
        seed: of A; equal ones give equal adapters on all ranks, and again after a restart.

    Raises:
        ConfigError: a target that the model does not have, or that is no linear layer.
    """
    # Only where it is used: it takes two seconds to import.
    import peft

    linear = linear_layers(causal_lm)
    if unknown := lora.targets_without(list(linear)):
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(
            f"learner.lora.target_modules: the student has no linear layer {unknown[0]}; there are {', '.join(ends)}"
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
            f"learner.lora.target_modules: {min(others)} is no linear layer; name layers between the embedding and the output layer"
        )
    by_layer = {
        name: Adapter(a=layer.lora_A[_ADAPTER].weight, b=layer.lora_B[_ADAPTER].weight, scale=layer.scaling[_ADAPTER])
        for name, layer in layers.items()
    }
    trained = sum(adapter.a.numel() + adapter.b.numel() for adapter in by_layer.values())
    logger.info("adapters added layers=%d rank=%d trained_parameters=%d", len(by_layer), lora.rank, trained)
    return Adapters(by_layer=by_layer, settings=settings)


def linear_layers(causal_lm: PreTrainedModel) -> dict[str, nn.Linear]:
    """All that can be adapted, by name: the linear layers but the output layer."""
    output = causal_lm.get_output_embeddings()
    return {
        name: module
        for name, module in causal_lm.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    }


def student_weights(causal_lm: nn.Module, adapters: Adapters | None) -> Iterator[StudentWeight]:
    """Every weight of the student once, in the model's order, under the name that it has without adapters."""
    if adapters is None:
        yield from (StudentWeight(name=name, parameter=parameter) for name, parameter in causal_lm.named_parameters())
        return
    of_adapters = {id(weight.parameter) for weight in adapters.weights()}
    for name, parameter in causal_lm.named_parameters():
        if id(parameter) not in of_adapters:
            # An adapted layer is what peft puts in its place, and holds it as `base_layer`.
            layer, is_adapted, leaf = name.rpartition(".base_layer.")
            adapter = adapters.by_layer[layer] if is_adapted and leaf == "weight" else None
            yield StudentWeight(name=f"{layer}.{leaf}" if is_adapted else name, parameter=parameter, adapter=adapter)
