"""Checks and repairs that every transport needs when it loads new weights into a vLLM model.

Used in vLLM's own processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rlad.errors import WeightsMismatchError

Shape = tuple[int, ...]


class WholeModelLoader:
    """Mixin for a `WeightTransferEngine`, placed before it in the bases.

    vLLM's layerwise reload discards the model's tensors when it begins, so an update must be checked before that. The
    engines therefore do all their work in `receive_weights`, and `start_weight_update` and `finish_weight_update` are
    empty.

    Attributes:
        loaded: Version and checksum of the weights in the model. The checksum is empty for the initial weights. None
            after an update that failed half way.
    """

    loaded: tuple[int, str] | None = (0, "")
    model: Any
    model_config: Any

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self) -> None:
        pass

    def require_whole_model(self, shapes: Mapping[str, Shape], version: int) -> None:
        """Compare an update with the checkpoint that the engine started from.

        vLLM would leave a layer with missing weights half old or uninitialized, with only a warning.

        Args:
            shapes: Shapes of the update's tensors, by name.
            version: Policy version of the update.

        Raises:
            WeightsMismatchError: A tensor is missing, unknown or has a different shape.
        """
        checkpoint: dict[str, Shape] = {}
        for path in Path(self.model_config.model).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                checkpoint |= shapes_in(file)
        if self._is_tied:  # the output layer is the embedding; some checkpoints store it twice
            shapes, checkpoint = (
                {name: shape for name, shape in tensors.items() if name != "lm_head.weight"}
                for tensors in (shapes, checkpoint)
            )
        if shapes != checkpoint:
            wrong = sorted(
                name for name in shapes.keys() | checkpoint.keys() if shapes.get(name) != checkpoint.get(name)
            )
            raise WeightsMismatchError(
                f"version {version} does not fit the model at {self.model_config.model}: "
                f"tensors that are missing, unknown or have a different shape: {wrong}"
            )

    def repack_tied_head(self) -> None:
        """Repack an output layer that shares its weights with the embedding.

        On CPU vLLM packs the output layer's weights for its matrix product when it loads a model. The reload renews the
        embedding only. Without this call the packed copy would silently keep computing the logits of the old weights.
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
    """Return the shapes of the tensors in an open safetensors file, by name."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  not a dict
