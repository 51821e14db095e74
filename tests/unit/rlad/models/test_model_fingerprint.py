from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlad.errors import EngineError
from rlad.model_fingerprint import model_fingerprint


def test_copy_of_a_model_has_the_same_fingerprint(make_model: Callable[..., Path], tmp_path: Path) -> None:
    copy = shutil.copytree(make_model(), tmp_path / "renamed")
    assert model_fingerprint(copy, tokenizer="a") == model_fingerprint(make_model(), tokenizer="a")


def test_fingerprint_depends_on_weights_configuration_and_tokenizer(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    reference = make_model()
    one_bit = shutil.copytree(reference, tmp_path / "one_bit")
    weights = bytearray((one_bit / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (one_bit / "model.safetensors").write_bytes(weights)
    config = shutil.copytree(reference, tmp_path / "config")
    (config / "config.json").write_text(
        (config / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    )
    fingerprints = [model_fingerprint(path, tokenizer="a") for path in (reference, one_bit, config, make_model(seed=1))]
    assert len({*fingerprints, model_fingerprint(reference, tokenizer="b")}) == 5


def test_directory_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="safetensors"):
        model_fingerprint(tmp_path, tokenizer="a")
