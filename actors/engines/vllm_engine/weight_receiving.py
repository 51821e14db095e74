"""Engines that take new weights straight from the learner, tensor by tensor: vLLM's own `nccl` and `ipc`, and `gloo`, which is `nccl` between CPUs.

None of them sees a checksum of the values: names, types and shapes are what can be compared. Each tells which version it holds only when the last tensor
of it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine, IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.engines.vllm_engine.gloo_group import GlooGroup
from actors.engines.vllm_engine.loaded_model import LoadsWholeModel
from rlad.weight_file import layout_checksum


@dataclass
class NamedTensors(NCCLWeightTransferUpdateInfo):
    """Tensors in the order in which they come, and the version they make."""

    version: int = field(kw_only=True)


@dataclass
class IpcTensors(IPCWeightTransferUpdateInfo):
    """Where tensors lie in the learner's GPU memory, and the version they make."""

    version: int = field(kw_only=True)


class _LoadsReceived(LoadsWholeModel):
    """A whole update in `receive_weights`, around that of the vLLM engine behind it."""

    def receive_weights(self, update_info: NamedTensors | IpcTensors) -> None:
        """Receive every tensor and load the model from them.

        Raises:
            WeightsMismatchError: they are not this model's. The model is untouched.
        """
        names, shapes = update_info.names, [tuple(shape) for shape in update_info.shapes]
        self.require_whole_model(dict(zip(names, shapes, strict=True)), update_info.version)
        self.loaded = None
        initialize_layerwise_reload(self.model)
        super().receive_weights(update_info)  # type: ignore[misc]
        finalize_layerwise_reload(self.model, self.model_config)
        self.renew_tied_head()
        self.loaded = update_info.version, layout_checksum(names, update_info.dtype_names, shapes)


class NcclWeights(_LoadsReceived, NCCLWeightTransferEngine):
    """Takes part in broadcasts from GPU to GPU."""

    update_info_cls = NamedTensors


class IpcWeights(_LoadsReceived, IPCWeightTransferEngine):
    """Maps the learner's memory on the GPU that both are on, and copies out of it."""

    update_info_cls = IpcTensors


@dataclass(kw_only=True)
class GlooInit(WeightTransferInitInfo):
    """Where the group meets, and the place in it of this engine's first process."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


class _ReceivesFromGloo(WeightTransferEngine[GlooInit, NamedTensors]):
    init_info_cls = GlooInit
    update_info_cls = NamedTensors
    _group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        self._group = GlooGroup(
            address=init_info.master_address,
            port=init_info.master_port,
            rank=init_info.rank_offset + self.parallel_config.rank,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
        )

    def receive_weights(self, update_info: NamedTensors) -> None:
        self.model.load_weights(self._tensors(update_info))

    def _tensors(self, update_info: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
        if self._group is None:
            raise RuntimeError("this engine is in no group: init_weight_transfer_engine comes before update_weights")
        for name, dtype_name, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype_name))
            self._group.broadcast(tensor)
            yield name, tensor

    def shutdown(self) -> None:
        self._group = None


class GlooWeights(_LoadsReceived, _ReceivesFromGloo):
    """Takes part in broadcasts from CPU to CPU."""
