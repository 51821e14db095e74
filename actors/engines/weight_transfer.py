"""New weights for a running vLLM engine, from a file. Imported in vLLM's own processes, as `EngineArgs.worker_extension_cls`.

Registers the engine "object_store" with vLLM's weight transfer. One update is `start_weight_update`, `update_weights`, `finish_weight_update` of `AsyncLLM`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights import require_published
from rlad.contracts import WeightsManifest
from rlad.errors import WeightsMismatchError

BACKEND = "object_store"


@dataclass
class NoInit(WeightTransferInitInfo):
    """There is nothing to set up before the first update."""


@dataclass
class WeightsFile(WeightTransferUpdateInfo):
    """A safetensors file on this node, and what its bytes must be."""

    path: str
    version: int
    checksum: str
    num_bytes: int


class ObjectStoreWeights(WeightTransferEngine[NoInit, WeightsFile]):
    """Loads one file an update.

    Everything happens in `receive_weights`, because vLLM's layerwise reload takes the model's tensors away when it begins: a file that is refused
    must be refused before that, so that the engine still has its old weights.
    """

    init_info_cls = NoInit
    update_info_cls = WeightsFile

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.loaded: WeightsFile | None = None

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def receive_weights(self, update_info: WeightsFile) -> None:
        """Verify the file and load it.

        Raises:
            WeightsMismatchError: the file is not what was published, or not this model's weights. The model is untouched.
        """
        path = Path(update_info.path)
        require_published(path, WeightsManifest(version=update_info.version, checksum=update_info.checksum, num_bytes=update_info.num_bytes))
        with safe_open(path, framework="pt") as file:
            self._require_whole_model(_shapes(file), update_info.version)
            self.loaded = None
            initialize_layerwise_reload(self.model)
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  not a dict
            finalize_layerwise_reload(self.model, self.model_config)
            self._renew_tied_head()
        self.loaded = update_info

    def finish_weight_update(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    @property
    def _is_tied(self) -> bool:
        return bool(self.model_config.hf_config.tie_word_embeddings)

    def _require_whole_model(self, shapes: dict[str, tuple[int, ...]], version: int) -> None:
        """Compare with the checkpoint the engine started from: vLLM leaves a layer whose weights are missing half old or uninitialised, with no more
        than a warning."""
        checkpoint: dict[str, tuple[int, ...]] = {}
        for path in Path(self.model_config.model).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                checkpoint |= _shapes(file)
        if self._is_tied:  # the head is the embedding; some checkpoints write it twice
            shapes, checkpoint = ({name: shape for name, shape in of.items() if name != "lm_head.weight"} for of in (shapes, checkpoint))
        if shapes != checkpoint:
            wrong = sorted(name for name in shapes.keys() | checkpoint.keys() if shapes.get(name) != checkpoint.get(name))
            raise WeightsMismatchError(
                f"version {version} does not fit the model at {self.model_config.model}: missing, unknown or of another shape: {wrong}"
            )

    def _renew_tied_head(self) -> None:
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


class WeightsExtension:
    """What `collective_rpc` can ask of vLLM's workers beyond vLLM's own methods."""

    weight_transfer_engine: ObjectStoreWeights

    def loaded_weights(self) -> tuple[int, str] | None:
        """Version and checksum of the file that was loaded last; None before the first, and after an update that failed half way."""
        loaded = self.weight_transfer_engine.loaded
        return (loaded.version, loaded.checksum) if loaded else None


def _shapes(file: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  not a dict


WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreWeights)
