"""Output layer read from a model's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlad.errors import EngineError
from rlad.models.output_layer import read_output_layer

MakeModel = Callable[..., Path]


def copy_of(model: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None], **settings: object) -> Path:
    """Write a copy of a model with changed tensors and settings."""
    target.mkdir(exist_ok=True)
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **settings}))
    return target


@pytest.mark.parametrize("tied", [True, False])
def test_weight_is_that_of_the_loaded_model(make_model: MakeModel, tied: bool) -> None:
    model = make_model(tied=tied)
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).get_output_embeddings().weight
    found = read_output_layer(model, torch.float32)
    torch.testing.assert_close(found.weight, expected.detach(), rtol=0, atol=0)
    half = read_output_layer(model, torch.bfloat16)
    torch.testing.assert_close(half.weight, expected.detach().bfloat16(), rtol=0, atol=0)
    assert half.sha256 == found.sha256, "the digest is that of the file"
    assert len(found.sha256) == 64


def test_sharded_model_is_read_through_its_index(make_model: MakeModel, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model(tied=False), dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    found, expected = (read_output_layer(path, torch.float32) for path in (tmp_path, make_model(tied=False)))
    assert found.sha256 == expected.sha256
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=0)


def test_one_changed_value_changes_the_digest(make_model: MakeModel, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][3, 5] += 1e-6

    changed = copy_of(make_model(tied=False), tmp_path / "m", change)
    first, second = (read_output_layer(path, torch.float32).sha256 for path in (make_model(tied=False), changed))
    assert first != second


def test_model_whose_logits_need_more_than_the_weight_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(tied=False)

    def bias(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.bias"] = torch.zeros(31)

    def quantize(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.qweight"] = tensors.pop("lm_head.weight").to(torch.int32)

    def keep(tensors: dict[str, torch.Tensor]) -> None: ...

    for change, message in (
        (bias, r"without bias and quantization in the model's files; found \['lm_head.bias', 'lm_head.weight'\]"),
        (quantize, "lm_head.weight is torch.int8 .*, which is quantized"),
        (pack, r"found \['lm_head.qweight'\]"),
    ):
        with pytest.raises(EngineError, match=message):
            read_output_layer(copy_of(model, tmp_path / change.__name__, change), torch.bfloat16)
    capped = copy_of(model, tmp_path / "capped", keep, final_logit_softcapping=30.0)
    with pytest.raises(EngineError, match=r"got \{'final_logit_softcapping': 30.0\}. Set teacher.send to logprobs"):
        read_output_layer(capped, torch.bfloat16)
