"""Weights that are not the whole model are refused on every transport: each engine calls this check first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from actors.engines.vllm_engine.loaded_model import WholeModelLoader
from rlad.errors import WeightsMismatchError

# A checkpoint of two files.
SHAPES = {"embed.weight": (7, 4), "layers.0.q.weight": (4, 4), "layers.1.q.weight": (4, 4), "lm_head.weight": (7, 4)}


def loader(folder: Path, *, tied: bool) -> WholeModelLoader:
    names = sorted(SHAPES)
    for number, part in enumerate((names[:2], names[2:])):
        save_file({name: torch.zeros(SHAPES[name]) for name in part}, folder / f"model-{number}.safetensors")
    found = WholeModelLoader()
    found.model_config = SimpleNamespace(
        model=str(folder), hf_config=SimpleNamespace(tie_word_embeddings=tied), dtype=torch.float32
    )
    return found


@pytest.mark.parametrize("missing", sorted(SHAPES))
def test_update_without_one_tensor_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    shapes = {name: shape for name, shape in SHAPES.items() if name != missing}
    with pytest.raises(WeightsMismatchError, match=rf"version 3 does not fit .*: \['{missing}'\]"):
        loader(tmp_path, tied=False).require_whole_model(shapes, 3)


@pytest.mark.parametrize("change", [{"layers.2.q.weight": (4, 4)}, {"layers.1.q.weight": (4, 5)}])
def test_unknown_tensor_and_other_shape_are_refused(tmp_path: Path, change: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(WeightsMismatchError, match=str(*change)):
        loader(tmp_path, tied=False).require_whole_model(SHAPES | change, 3)


def test_whole_model_is_accepted_and_a_tied_output_layer_may_be_left_out(tmp_path: Path) -> None:
    loader(tmp_path, tied=False).require_whole_model(SHAPES, 3)
    without = {name: shape for name, shape in SHAPES.items() if name != "lm_head.weight"}
    loader(tmp_path, tied=True).require_whole_model(without, 3)
    loader(tmp_path, tied=True).require_whole_model(SHAPES, 3)
    with pytest.raises(WeightsMismatchError, match="embed"):
        loader(tmp_path, tied=True).require_whole_model({**without, "embed.weight": (7, 5)}, 3)
