"""What every way of loading new weights into a vLLM model must see to, whoever brings them. Used in vLLM's own processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rlad.errors import WeightsMismatchError

Shape = tuple[int, ...]


class LoadsWholeModel:
    """Mixed into a `WeightTransferEngine`, in front of it.

    vLLM's layerwise reload takes the model's tensors away when it begins, so whatever is refused must be refused before: engines do everything in
    `receive_weights`, and `start_weight_update` and `finish_weight_update` are left empty for it.

    Attributes:
        loaded: version and checksum of the weights in the model; no checksum where it still has those it came up with, None after an update that failed
            half way.
    """

    loaded: tuple[int, str] | None = (0, "")
    model: Any
    model_config: Any

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass

    def require_whole_model(self, shapes: Mapping[str, Shape], version: int) -> None:
        """Compare with the checkpoint the engine started from: vLLM leaves a layer whose weights are missing half old or uninitialised, with no more
        than a warning.

        Raises:
            WeightsMismatchError: a tensor is missing, unknown or of another shape.
        """
        checkpoint: dict[str, Shape] = {}
        for path in Path(self.model_config.model).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                checkpoint |= shapes_in(file)
        if self._is_tied:  # the head is the embedding; some checkpoints write it twice
            shapes, checkpoint = (
                {name: shape for name, shape in of.items() if name != "lm_head.weight"} for of in (shapes, checkpoint)
            )
        if shapes != checkpoint:
            wrong = sorted(
                name for name in shapes.keys() | checkpoint.keys() if shapes.get(name) != checkpoint.get(name)
            )
            raise WeightsMismatchError(
                f"version {version} does not fit the model at {self.model_config.model}: missing, unknown or of another shape: {wrong}"
            )

    def renew_tied_head(self) -> None:
        """Repack a head that shares its weights with the embedding.

        On CPU vLLM packs the head's weights for its matrix product when it loads a model. The reload renews the embedding only, so the packed copy
        would go on giving the old weights' logits, without an error.
        """
        if not self._is_tied:
            return
        head = self.model.lm_head
        with torch.no_grad():
            head.weight = self.model.model.embed_tokens.weight
            head.quant_method.process_weights_after_loading(head)

    @property
    def _is_tied(self) -> bool:
        return bool(self.model_config.hf_config.tie_word_embeddings)


def shapes_in(file: Any) -> dict[str, Shape]:
    """Of an open safetensors file."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  not a dict
