"""New weights for a running vLLM engine. Imported in vLLM's own processes, as `EngineArgs.worker_extension_cls`.

Registers our engines with vLLM's weight transfer, as `rlad_TRANSPORT`. One update is `start_weight_update`, `update_weights`, `finish_weight_update` of
`AsyncLLM`, whatever the transport.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.engines.vllm_engine.loaded_model import LoadsWholeModel
from rlad.contracts import WeightsManifest
from rlad.weight_file import MappedFile


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


class ObjectStoreWeights(LoadsWholeModel, WeightTransferEngine[NoInit, WeightsFile]):
    """Loads one file an update."""

    init_info_cls = NoInit
    update_info_cls = WeightsFile

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._file = MappedFile()

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def receive_weights(self, update_info: WeightsFile) -> None:
        """Verify the file and load it.

        Raises:
            WeightsMismatchError: the file is not what was published, or not this model's weights. The model is untouched.
        """
        manifest = WeightsManifest(
            version=update_info.version, checksum=update_info.checksum, num_bytes=update_info.num_bytes
        )
        tensors = self._file.tensors(Path(update_info.path), manifest)
        self.require_whole_model({name: tuple(tensor.shape) for name, tensor in tensors.items()}, update_info.version)
        self.loaded = None
        initialize_layerwise_reload(self.model)
        self.model.load_weights(iter(tensors.items()))
        finalize_layerwise_reload(self.model, self.model_config)
        self.renew_tied_head()
        self.loaded = update_info.version, update_info.checksum

    def shutdown(self) -> None:
        pass


class WeightsExtension:
    """What `collective_rpc` can ask of vLLM's workers beyond vLLM's own methods."""

    weight_transfer_engine: LoadsWholeModel

    def loaded_weights(self) -> tuple[int, str] | None:
        """As `LoadsWholeModel.loaded`."""
        return self.weight_transfer_engine.loaded


WeightTransferEngineFactory.register_engine("rlad_object_store", ObjectStoreWeights)
WeightTransferEngineFactory.register_engine("rlad_nccl", "actors.engines.vllm_engine.weight_receiving", "NcclWeights")
WeightTransferEngineFactory.register_engine("rlad_ipc", "actors.engines.vllm_engine.weight_receiving", "IpcWeights")
WeightTransferEngineFactory.register_engine("rlad_gloo", "actors.engines.vllm_engine.weight_receiving", "GlooWeights")
