"""LoRA adapters on a tiny model, without DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from actors.engines.zero_engine.lora import Adapter, Adapters, add_adapters, student_weights
from actors.engines.zero_engine.policy_model import load_policy_model
from pipelines.planning.model_shape import shape_of
from rlad.config import LoraConfig
from rlad.errors import ConfigError

MakeModel = Callable[..., Path]


def adapters_of(path: Path, lora: LoraConfig, *, seed: int = 0) -> Adapters:
    return add_adapters(AutoModelForCausalLM.from_pretrained(path), lora, seed=seed)


def test_adding_an_adapter_does_not_change_the_weight() -> None:
    adapter = Adapter(
        a=nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]])), b=nn.Parameter(torch.tensor([[10.0], [-1.0]])), scale=0.5
    )
    weight = torch.ones(2, 3)
    with torch.no_grad():
        assert adapter.added_to(weight).tolist() == [[6.0, 11.0, 16.0], [0.5, 0.0, -0.5]]
    assert weight.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_bfloat16_adapter_is_added_in_float32() -> None:
    # 256 - 255 + 0.0078125: the last term would be lost if each addition or the product were rounded to bfloat16.
    adapter = Adapter(
        a=nn.Parameter(torch.tensor([[-255.0], [0.0078125]]).bfloat16()),
        b=nn.Parameter(torch.ones(1, 2).bfloat16()),
        scale=1.0,
    )
    with torch.no_grad():
        assert adapter.added_to(torch.tensor([[256.0]]).bfloat16()).item() == 1.0078125


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "mlp.up_proj"], ["model.layers.1.self_attn.k_proj"]])
def test_number_of_trained_parameters_matches_the_plan(make_model: MakeModel, targets: str | list[str]) -> None:
    lora = LoraConfig.model_validate({"rank": 3, "target_modules": targets})
    for tied in (True, False):
        path = make_model(tied=tied)
        model = load_policy_model(
            str(path), dtype=torch.float32, temperature=1, chunk_tokens=8, activation_checkpointing=False, lora=lora
        )
        shape = shape_of(str(path))
        assert shape is not None
        assert sum(parameter.numel() for parameter in model.trained_parameters()) == shape.trained_parameters(lora)
        names = [weight.name for weight in student_weights(model.causal_lm, model.adapters)]
        assert names == [name for name, _ in AutoModelForCausalLM.from_pretrained(path).named_parameters()]
        frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
        assert len(frozen) == len(names)


def test_adapters_depend_on_their_seed_only_and_leave_the_global_generator_unchanged(
    make_model: MakeModel,
) -> None:
    path = make_model()
    torch.manual_seed(3)
    first = adapters_of(path, LoraConfig(rank=2), seed=7)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(drawn, torch.rand(1))
    again, other = (adapters_of(path, LoraConfig(rank=2), seed=seed) for seed in (7, 8))
    assert all(torch.equal(first.by_layer[name].a, adapter.a) for name, adapter in again.by_layer.items())
    assert not any(torch.equal(first.by_layer[name].a, adapter.a) for name, adapter in other.by_layer.items())
    assert not any(adapter.b.any() for adapter in first.by_layer.values())


@pytest.mark.parametrize("target", ["qkv_proj", "proj", "mlp", "input_layernorm", "model.norm"])
def test_target_that_is_not_a_linear_layer_of_the_student_is_refused(make_model: MakeModel, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"no linear layer {target}; choose from down_proj, gate_proj, k_proj"):
        adapters_of(make_model(), LoraConfig(target_modules=["q_proj", target]))


def test_checkpoint_state_has_no_second_name_of_a_frozen_weight(make_model: MakeModel) -> None:
    """DeepSpeed excludes frozen parameters by their first names only."""
    model = load_policy_model(
        str(make_model(tied=True)),
        dtype=torch.float32,
        temperature=1,
        chunk_tokens=8,
        activation_checkpointing=False,
        lora=LoraConfig(),
    )
    first_names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all("lora_" in name for name in model.state_dict().keys() - first_names)
