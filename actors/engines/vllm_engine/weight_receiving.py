"""Engines that receive new weights tensor by tensor in a direct transfer from the learner.

`nccl` and `ipc` are vLLM's own; `gloo` is the counterpart of `nccl` for CPUs. None of them can compare a checksum of
the values, so names, dtypes and shapes are compared. An engine reports the new version only after the last tensor is
loaded.
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
from actors.engines.vllm_engine.loaded_model import WholeModelLoader
from rlad.weight_file import layout_checksum


@dataclass
class NamedTensors(NCCLWeightTransferUpdateInfo):
    """Tensors of an update, in the order in which they are sent, and the policy version of the update."""

    version: int = field(kw_only=True)


@dataclass
class IpcTensors(IPCWeightTransferUpdateInfo):
    """Handles of tensors in the learner's GPU memory, and the policy version of the update."""

    version: int = field(kw_only=True)


class _TransferLoader(WholeModelLoader):
    """Mixin that runs a whole update in `receive_weights`, around the method of a vLLM engine."""

    def receive_weights(self, update_info: NamedTensors | IpcTensors) -> None:
        """Receive all tensors and load them into the model.

        Raises:
            WeightsMismatchError: The tensors are not those of this model. The model is unchanged.
        """
        names, shapes = update_info.names, [tuple(shape) for shape in update_info.shapes]
        self.require_whole_model(dict(zip(names, shapes, strict=True)), update_info.version)
        self.loaded = None
        initialize_layerwise_reload(self.model)
        super().receive_weights(update_info)  # type: ignore[misc]
        finalize_layerwise_reload(self.model, self.model_config)
        self.repack_tied_head()
        self.loaded = update_info.version, layout_checksum(names, update_info.dtype_names, shapes)


class NcclEngine(_TransferLoader, NCCLWeightTransferEngine):
    """Receives broadcasts from GPU to GPU."""

    update_info_cls = NamedTensors


class IpcEngine(_TransferLoader, IPCWeightTransferEngine):
    """Maps the learner's memory on a GPU that both processes use, and copies from it."""

    update_info_cls = IpcTensors


@dataclass(kw_only=True)
class GlooInit(WeightTransferInitInfo):
    """Initialization record of `GlooEngine`: address of the process group and rank of this engine's first process."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


class _GlooTransferEngine(WeightTransferEngine[GlooInit, NamedTensors]):
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
            raise RuntimeError(
                "this engine has no process group; call init_weight_transfer_engine before update_weights"
            )
        for name, dtype_name, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype_name))
            self._group.broadcast(tensor)
            yield name, tensor

    def shutdown(self) -> None:
        self._group = None


class GlooEngine(_TransferLoader, _GlooTransferEngine):
    """Receives broadcasts from CPU to CPU."""
