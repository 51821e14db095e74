"""Export of a student as a Hugging Face model directory."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from rlad.errors import StorageError
from rlad.integrity.durable import move_into_place, storage_errors
from rlad.integrity.manifest import write_manifest

_ADAPTER = "adapter"
_TOKENIZER_AND_GENERATION_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map*",
    "added_tokens*",
    "chat_template*",
    "generation_config*",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterExport:
    """LoRA adapter in peft's form.

    Attributes:
        settings: peft's `LoraConfig`.
        weights: Adapter weights by peft's names.
        base_model: Path or name of the student's initial model.
    """

    settings: Any
    weights: Mapping[str, Tensor]
    base_model: str


def export_model(
    weights: Mapping[str, Tensor],
    source: Path,
    directory: Path,
    *,
    adapter: AdapterExport | None = None,
) -> None:
    """Write a Hugging Face model directory. It appears complete or not at all, and replaces an older one.

    Args:
        weights: Weights by Hugging Face name, adapters added, tied embeddings once.
        source: Directory of the student's initial model, which provides the configuration and the tokenizer.
        directory: Directory to write.
        adapter: Adapter of the student, also written separately to the subdirectory `adapter`.

    Raises:
        StorageError: The disk refused a write. The older directory is unchanged.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with storage_errors(directory):
            _write(weights, source, partial, adapter)
    except SafetensorError as error:  # of a full disk, too
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"cannot write {directory}: {error}. What was there before is unchanged; free space or repair the disk, "
            "and continue the run with --resume"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if directory.exists():
        shutil.rmtree(directory)
    move_into_place(partial, directory)


def _write(weights: Mapping[str, Tensor], source: Path, partial: Path, adapter: AdapterExport | None) -> None:
    partial.mkdir(parents=True)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    config.dtype = next(iter(weights.values())).dtype
    config.save_pretrained(partial)
    save_torch_state_dict(dict(weights), partial)
    for pattern in _TOKENIZER_AND_GENERATION_FILES:
        for path in source.glob(pattern):
            shutil.copy2(path, partial / path.name)
    if adapter is not None:
        _write_adapter(adapter, partial / _ADAPTER)
    # safetensors writes files that only their owner can read, but a server may run as another user.
    for path in partial.rglob("*.safetensors*"):
        shutil.copymode(partial / "config.json", path)
    write_manifest(partial)


def _write_adapter(adapter: AdapterExport, directory: Path) -> None:
    """Write an adapter directory that `peft.PeftModel.from_pretrained` loads onto the student's initial model."""
    settings = copy.copy(adapter.settings)
    settings.base_model_name_or_path = adapter.base_model
    settings.inference_mode = True
    settings.target_modules = sorted(settings.target_modules)
    settings.save_pretrained(str(directory))
    save_file(dict(adapter.weights), directory / "adapter_model.safetensors", metadata={"format": "pt"})
