"""The learner's end of vLLM's weight transfer: forms groups with rollout workers and sends them the student's weights.

Imported only where a run's weights go that way: with it comes vLLM.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.engines.vllm_engine.gloo_group import GlooGroup
from actors.engines.zero_engine.weight_source import StudentWeights
from rlad.errors import EngineError

logger = logging.getLogger(__name__)

# How long sending may go on after a receiver has failed. A collective of gloo ends with an error when a process of it dies, one of NCCL may never.
_LEAVE_TIMEOUT_S = 60.0
# Exit status of a rank that ends because sending does not.
STUCK = 75


class Receivers(Protocol):
    """Whom weights are sent to: a `VLLMWeightSyncClient`, and how many they are. `on_failure` is called from another thread when the first of them fails."""

    on_failure: Any

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def world_size(self) -> int: ...


class StudentSource(WeightSource):
    """The student's weights as vLLM's trainer engines want them. One pass a transfer is what the other ranks make too."""

    def __init__(self, weights: StudentWeights) -> None:
        self._weights = weights
        self._pass: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(layout.name, layout.dtype, layout.shape) for layout in self._weights.layouts()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = iter(self._weights)
        return self._pass

    def complete_pass(self) -> None:
        """Walk what a transfer that failed has left of its pass, or all if it never began: the other ranks gather with this one to the end."""
        for _ in self._pass if self._pass is not None else self._weights:
            pass
        self._pass = None


class WeightSender:
    """Lives on rank 0. Keeps the group of the last transfer, and forms another when the workers are others."""

    def __init__(
        self,
        transport: str,
        weights: StudentWeights,
        *,
        address: str,
        timeout_s: float,
        leave_timeout_s: float = _LEAVE_TIMEOUT_S,
    ) -> None:
        """
        Args:
            transport: `nccl`, `ipc` or `gloo`.
            address: of this node, as the workers reach it.
            timeout_s: for workers to join.
            leave_timeout_s: how long sending may go on after a receiver has failed, before this process is ended.
        """
        self._transport = transport
        self._source = StudentSource(weights)
        self._address = address
        self._timeout_s = timeout_s
        self._leave_timeout_s = leave_timeout_s
        self._members: tuple[str, ...] = ()
        self._engine: TrainerWeightTransferEngine[Any] | None = None

    def connect(self, receivers: Receivers) -> None:
        """Meet these workers, unless the last transfer was to them too.

        Raises:
            EngineError: they did not all come. Nothing was sent to any.
        """
        if self._engine is not None and self._members == receivers.names:
            self._engine.client = receivers
            return
        self.leave()
        info = trainer_init_info(self._transport, self._address, receivers.world_size, timeout_s=self._timeout_s)
        try:
            # Meeting has a deadline of its own; what NCCL does behind it has none.
            with self._ends_if_stuck(receivers, after_s=self._timeout_s + self._leave_timeout_s):
                self._engine = WeightTransferTrainerFactory.trainer_init(info, client=receivers, source=self._source)
        except Exception as error:
            raise EngineError(
                f"no group for the transfer of weights to {', '.join(receivers.names)}: {error}"
            ) from error
        self._members = receivers.names
        logger.info(
            "weights=connected transport=%s workers=%s world_size=%d",
            self._transport,
            ",".join(self._members),
            receivers.world_size,
        )

    def send(self, receivers: Receivers) -> None:
        """Send all weights to the workers of the last `connect`. The other ranks walk the weights meanwhile, and this one to the end whatever happens.

        Raises:
            EngineError: not all of them have got the weights.
        """
        assert self._engine is not None
        try:
            with self._ends_if_stuck(receivers, after_s=self._leave_timeout_s):
                self._engine.send_weights()
        except Exception as error:
            self.leave()
            raise EngineError(f"weights were not sent to {', '.join(receivers.names)}: {error}") from error
        finally:
            self._source.complete_pass()

    @contextmanager
    def _ends_if_stuck(self, receivers: Receivers, *, after_s: float) -> Iterator[None]:
        """Once a receiver has failed, the block has so long to end by itself; else this process does."""
        ending = threading.Timer(after_s, _end_process)
        ending.daemon = True
        receivers.on_failure = ending.start
        try:
            yield
        finally:
            receivers.on_failure = None
            ending.cancel()

    def leave(self) -> None:
        """Leave the group, if there is one."""
        if self._engine is not None:
            self._engine.shutdown()
        self._engine, self._members = None, ()


def trainer_init_info(transport: str, address: str, world_size: int, *, timeout_s: float) -> TrainerInitInfo:
    """What vLLM's trainer engine of a transport is started with, on the rank that sends."""
    if transport == "ipc":
        return IPCTrainerInitInfo(rank=0)  # by handles of the parameters' own memory, without a copy of them
    place: dict[str, Any] = {"master_address": address, "master_port": _free_port(address), "world_size": world_size}
    if transport == "gloo":
        return GlooTrainerInitInfo(rank=0, timeout_s=timeout_s, **place)
    # Tensor by tensor, on the stream that they are gathered on. Packed, vLLM cuts chunks on streams of its own, and a chunk may hold tensors of several
    # buckets, which DeepSpeed gives back on the stream that gathered them.
    return NCCLTrainerInitInfo(rank=0, packed=False, **place)


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """Where the group meets, how many they are, and how long to wait for them."""

    backend: ClassVar[str] = "rlad_gloo"

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Sends from CPU to CPU what vLLM's NCCL trainer engine sends from GPU to GPU, in the same order of calls."""

    init_info_cls = GlooTrainerInitInfo

    def __init__(self, *, client: VLLMWeightSyncClient, source: WeightSource, group: GlooGroup) -> None:
        super().__init__(client=client, source=source)
        self._group: GlooGroup | None = group

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        assert source is not None
        address, port = init_info.master_address, init_info.master_port
        size, timeout_s = init_info.world_size, init_info.timeout_s
        payload = {
            "master_address": address,
            "master_port": port,
            "rank_offset": 1,
            "world_size": size,
            "timeout_s": timeout_s,
        }
        with ThreadPoolExecutor(1) as beside:
            joined = beside.submit(client.init_weight_transfer_engine, payload)
            group = GlooGroup(address=address, port=port, rank=0, world_size=size, timeout_s=timeout_s)
            joined.result()
        return cls(client=client, source=source, group=group)

    def send_weights(self) -> None:
        assert self.source is not None
        assert self._group is not None
        metadata = self.source.metadata()
        update = {
            "names": [each.name for each in metadata],
            "dtype_names": [str(each.dtype).removeprefix("torch.") for each in metadata],
            "shapes": [list(each.shape) for each in metadata],
        }
        self.client.start_weight_update()
        with ThreadPoolExecutor(1) as beside:
            received = beside.submit(self.client.update_weights, update)
            for _, tensor in self.source:
                self._group.broadcast(tensor.contiguous())
            received.result()
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self._group = None  # its connections close with it


WeightTransferTrainerFactory.register_engine("rlad_gloo", GlooTrainer)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _end_process() -> None:
    """Nothing else gets a process out of a collective whose other members are gone. Ray Train starts the ranks again from the last checkpoint."""
    logger.critical("weights=stuck a receiver has failed and sending does not end: this rank ends, to be restarted")
    os._exit(STUCK)
