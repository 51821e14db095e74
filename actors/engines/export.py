"""Writing a student as a Hugging Face model directory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import AutoConfig

_TOKENIZER_AND_GENERATION_FILES = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*", "added_tokens*", "chat_template*", "generation_config*")


def export_model(weights: Mapping[str, Tensor], source: Path, directory: Path) -> None:
    """Write `weights` as safetensors, with the configuration and tokenizer of `source`, the model they began as.

    `directory` appears whole or not at all, and replaces an older one.

    Args:
        weights: by Hugging Face name; tied embeddings once.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = AutoConfig.from_pretrained(source)
    config.dtype = next(iter(weights.values())).dtype
    config.save_pretrained(partial)
    save_torch_state_dict(dict(weights), partial)
    for pattern in _TOKENIZER_AND_GENERATION_FILES:
        for path in source.glob(pattern):
            shutil.copy2(path, partial / path.name)
    for path in partial.glob("*.safetensors*"):  # written for their owner alone, but a server may run as another user
        shutil.copymode(partial / "config.json", path)
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)
