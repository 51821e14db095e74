"""Weight updates of a running vLLM engine. Imported in vLLM's own processes, through `EngineArgs.worker_extension_cls`.

Importing this module registers the project's engines with vLLM's weight transfer, under `rlad_<transport>`. With every
transport an update is `start_weight_update`, `update_weights`, `finish_weight_update` of `AsyncLLM`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from actors.engines.vllm_engine.loaded_model import WholeModelLoader
from actors.engines.vllm_engine.masking import MaskExtension
from actors.engines.vllm_engine.partial_reload import PartialReload
from rlad.contracts import WeightsManifest
from rlad.weight_file import MappedFile


@dataclass
class NoInit(WeightTransferInitInfo):
    """Empty initialization record: the object store needs no setup before the first update."""


@dataclass
class WeightsFile(WeightTransferUpdateInfo):
    """Weight file on this node, with its expected checksum and size.

    Attributes:
        changed: Places of the tensors, in the file's order, that differ from the version with the checksum `base`;
            None if that is not known.
    """

    path: str
    version: int
    checksum: str
    num_bytes: int
    base: str = ""
    changed: list[int] | None = None


class ObjectStoreEngine(WholeModelLoader, WeightTransferEngine[NoInit, WeightsFile]):
    """Loads weights from the node's weight file, one file per update.

    Attributes:
        num_loaded: Number of tensors that the last update loaded.
    """

    init_info_cls = NoInit
    update_info_cls = WeightsFile

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._file = MappedFile()
        self._reload = PartialReload()
        self.num_loaded = 0

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def receive_weights(self, update_info: WeightsFile) -> None:
        """Verify the file and load it, or of it the tensors that changed since the version in the model.

        Raises:
            WeightsMismatchError: The file differs from its manifest, or its tensors are not those of this model. The
                model is unchanged.
        """
        manifest = WeightsManifest(
            version=update_info.version, checksum=update_info.checksum, num_bytes=update_info.num_bytes
        )
        tensors = self._file.tensors(Path(update_info.path), manifest)
        self.require_whole_model({name: tuple(tensor.shape) for name, tensor in tensors.items()}, update_info.version)
        names = list(tensors)
        changed = None
        if update_info.changed is not None and self.loaded is not None and self.loaded[1] == update_info.base:
            changed = [names[place] for place in update_info.changed]
        self.loaded = None
        self.num_loaded = self._reload.load(self.model, self.model_config, tensors, changed)
        self.repack_tied_head()
        self.loaded = update_info.version, update_info.checksum

    def shutdown(self) -> None:
        pass


class WeightsExtension(MaskExtension):
    """Methods that the sampler calls on vLLM's workers through `collective_rpc`, beyond vLLM's own."""

    weight_transfer_engine: WholeModelLoader

    def loaded_weights(self) -> tuple[int, str] | None:
        """Return `WholeModelLoader.loaded`."""
        return self.weight_transfer_engine.loaded


_RECEIVING = "actors.engines.vllm_engine.weight_receiving"

# vLLM imports these modules by name when an engine is created, so a wrong name fails at run time only.
WeightTransferEngineFactory.register_engine("rlad_object_store", ObjectStoreEngine)
WeightTransferEngineFactory.register_engine("rlad_nccl", _RECEIVING, "NcclEngine")
WeightTransferEngineFactory.register_engine("rlad_ipc", _RECEIVING, "IpcEngine")
WeightTransferEngineFactory.register_engine("rlad_gloo", _RECEIVING, "GlooEngine")
