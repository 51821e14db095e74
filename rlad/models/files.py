"""Files of a model that are downloaded and read: configuration, tokenizer, and safetensors weights. Nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from rlad.errors import PlanError

CONFIGURATION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
# Subfolders hold other formats; `consolidated` files repeat the weights in another one.
IGNORED_FILES = ("*/*", "consolidated*")
INDEX_FILE = "model.safetensors.index.json"

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes downloaded so far and their known total."""


def is_wanted(name: str, *, weights: bool) -> bool:
    """Return whether a file of a model is downloaded."""
    patterns = CONFIGURATION_FILES + (WEIGHT_FILES if weights else ())
    return any(fnmatch(name, pattern) for pattern in patterns) and not any(
        fnmatch(name, pattern) for pattern in IGNORED_FILES
    )


def missing_files(directory: Path, *, weights: bool) -> list[str]:
    """Return the files that a model directory lacks. Every tokenizer has files of its own, so one of them suffices."""
    missing = [] if (directory / "config.json").is_file() else ["config.json"]
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        missing.append("tokenizer.json")
    if weights:
        missing += _missing_weights(directory)
    return missing


def require_files(directory: Path, reference: str, *, weights: bool) -> Path:
    """Return the directory of a model after a check that it can be loaded without running code.

    Raises:
        PlanError: It has no configuration, or weights are required and there are no complete safetensors files.
    """
    if not (directory / "config.json").is_file():
        raise PlanError(f"model {reference} has no config.json in {directory}: expected a Hugging Face model")
    if weights and (missing := _missing_weights(directory)):
        raise PlanError(
            f"model {reference} lacks {', '.join(missing[:3])} in {directory}: only safetensors weights are read; "
            "convert others with `save_pretrained` of transformers"
        )
    return directory


def _missing_weights(directory: Path) -> list[str]:
    index = directory / INDEX_FILE
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        return sorted(name for name in shards if not (directory / name).is_file())
    return [] if any(directory.glob("*.safetensors")) else ["*.safetensors"]
