"""Model identity: a fingerprint of weights, configuration and tokenizer, and the sizes of output layer and context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xxhash

from rlad.errors import EngineError

_CHUNK_BYTES = 8 << 20


def output_size(model_path: Path) -> int:
    """Return the number of entries of a model's output layer. Some families pad it beyond the vocabulary."""
    return int(_text_config(model_path).vocab_size)


def context_tokens(model_path: Path) -> int:
    """Return the size of a model's context, in tokens."""
    return int(_text_config(model_path).max_position_embeddings)


def _text_config(model_path: Path) -> Any:
    # Imports torch, which takes seconds that drivers and commands without models do not need to spend.
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model_path, trust_remote_code=False).get_text_config()


def model_fingerprint(model_path: Path, *, tokenizer: str) -> str:
    """Return 32 hexadecimal digits over `config.json`, the content of every safetensors file, and the tokenizer.

    Args:
        model_path: Hugging Face model directory.
        tokenizer: Fingerprint of the tokenizer.

    Raises:
        EngineError: The directory has no `config.json` or no safetensors file.
    """
    weights = sorted(model_path.glob("*.safetensors"))
    files = [model_path / "config.json", *weights]
    if not weights or not files[0].is_file():
        raise EngineError(f"{model_path} must hold config.json and *.safetensors files")
    digest = xxhash.xxh3_128(tokenizer.encode())
    for path in files:
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
