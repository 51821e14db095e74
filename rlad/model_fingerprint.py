"""What tells one model from another: its weights, its shape and its vocabulary."""

from __future__ import annotations

from pathlib import Path

import xxhash

from rlad.errors import EngineError

_CHUNK_BYTES = 8 << 20


def output_size(model_path: Path) -> int:
    """Entries of its output layer, which some families pad beyond the vocabulary."""
    from transformers import AutoConfig  # brings torch, seconds that drivers and commands without models do not pay

    return int(AutoConfig.from_pretrained(model_path).get_text_config().vocab_size)


def model_fingerprint(model_path: Path, *, tokenizer: str) -> str:
    """Thirty-two hexadecimal digits over `config.json`, the content of every safetensors file, and the tokenizer's fingerprint.

    Raises:
        EngineError: the directory holds no model in safetensors form.
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
