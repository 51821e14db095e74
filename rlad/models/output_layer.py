"""Output layer of a causal language model, read from its files without the rest of the model.

Imports torch: only for code that computes with the weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rlad.errors import EngineError

LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Configuration keys of architectures that transform their logits after `hidden @ weight.T`."""

_INDEX = "model.safetensors.index.json"
_HEAD = "lm_head."
_EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutputLayer:
    """Weight of an output layer whose logits are `hidden @ weight.T`.

    Attributes:
        weight: [V, H], on the CPU.
        sha256: Hexadecimal SHA-256 of data type, shape and bytes of the tensor in the model's files.
    """

    weight: Tensor
    sha256: str


def logit_transforms(config: Any) -> dict[str, Any]:
    """Return the settings of a transformers configuration by which logits are more than `hidden @ weight.T`."""
    return {name: value for name in LOGIT_TRANSFORMS if (value := getattr(config, name, None)) not in (None, 1, 1.0)}


def read_output_layer(model: Path, dtype: torch.dtype) -> OutputLayer:
    """Read the output layer of a model directory, or its input embedding if the two are tied.

    Args:
        model: Hugging Face model directory with safetensors files.
        dtype: Data type of the returned weight.

    Raises:
        EngineError: The model transforms its logits, its output layer has a bias or is quantized, or its files do not
            name the layer.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    if transforms := logit_transforms(config):
        raise EngineError(
            f"{model}: hidden states require a model whose logits are `hidden @ weight.T`; got {transforms}. Set "
            "teacher.send to logprobs"
        )
    files = _files_by_tensor(model)
    name = _name_of(model, set(files), is_tied=bool(config.tie_word_embeddings))
    with safe_open(files[name], framework="pt") as file:
        stored: Tensor = file.get_tensor(name)
    if stored.ndim != 2 or stored.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise EngineError(
            f"{model}: hidden states require an output layer of float32, float16 or bfloat16; {name} is {stored.dtype} "
            f"{list(stored.shape)}, which is quantized or of another kind. Set teacher.send to logprobs"
        )
    digest = hashlib.sha256(f"{stored.dtype} {list(stored.shape)} ".encode())
    digest.update(stored.contiguous().view(torch.uint8).numpy().data)
    return OutputLayer(weight=stored.to(dtype), sha256=digest.hexdigest())


def _files_by_tensor(model: Path) -> dict[str, Path]:
    """Return the file of every tensor of a model directory."""
    index = model / _INDEX
    if index.is_file():
        return {name: model / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    found: dict[str, Path] = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _name_of(model: Path, names: set[str], *, is_tied: bool) -> str:
    """Return the name of the output layer's weight."""
    heads = {name for name in names if name.startswith(_HEAD) or f".{_HEAD}" in name}
    embeddings = {name for name in names if name.endswith(_EMBEDDING)}
    wanted = embeddings if is_tied else heads
    if len(wanted) == 1 and (name := next(iter(wanted))).endswith(".weight"):
        return name
    raise EngineError(
        f"{model}: hidden states require one {'input embedding' if is_tied else 'output layer'} without bias and "
        f"quantization in the model's files; found {sorted(wanted)[:5]}. Set teacher.send to logprobs"
    )
