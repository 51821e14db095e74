"""Learner side of vLLM's weight transfer: connects to rollout workers and sends them the student's weights.

Importing this module imports vLLM. Import it only in runs whose transport is a direct transfer.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
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
)
from vllm.distributed.weight_transfer.base import WeightSource as VllmWeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from actors.engines.vllm_engine.gloo_group import GlooGroup
from actors.engines.zero_engine.weight_source import WeightSource
from rlad.errors import EngineError

logger = logging.getLogger(__name__)

# Time that a transfer may take to end after a worker failed. A gloo collective raises an error when one of its
# processes dies; an NCCL collective may never end.
_STUCK_TIMEOUT_S = 60.0
# Exit status of a rank that ends itself because its transfer does not end.
STUCK = 75


class TransferClient(VLLMWeightSyncClient, Protocol):
    """Client for the workers of one transfer: vLLM's `VLLMWeightSyncClient` with the additions used here.

    Attributes:
        on_failure: Called from another thread when the first worker fails; None for no callback.
        names: Names of the workers.
        world_size: Number of processes in the transfer's process group, this one included.
    """

    on_failure: Callable[[], None] | None

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def world_size(self) -> int: ...


class WeightSourceAdapter(VllmWeightSource):
    """Presents the student's weight source to vLLM's trainer engines.

    A transfer makes exactly one pass over the source. The other learner ranks make one pass too, because a pass may
    gather partitioned parameters.
    """

    def __init__(self, weights: WeightSource) -> None:
        self._weights = weights
        self._pass: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(layout.name, layout.dtype, layout.shape) for layout in self._weights.layouts()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = iter(self._weights)
        return self._pass

    def complete_pass(self) -> None:
        """Finish the pass of a failed transfer, or make a whole pass if it never began.

        The other ranks walk to the end of the source, and would wait in a gather for this one.
        """
        for _ in self._pass if self._pass is not None else self._weights:
            pass
        self._pass = None


class TransferSession:
    """Connection of learner rank 0 to rollout workers. Transfers to the same workers reuse it."""

    def __init__(
        self,
        transport: str,
        weights: WeightSource,
        *,
        address: str,
        timeout_s: float,
        stuck_timeout_s: float = _STUCK_TIMEOUT_S,
    ) -> None:
        """
        Args:
            transport: `nccl`, `ipc` or `gloo`.
            weights: Weight source.
            address: Address of this node, as seen from the workers.
            timeout_s: Time for the workers to join, seconds.
            stuck_timeout_s: Time that a transfer may take to end after a worker failed, seconds. After that this
                process ends itself.
        """
        self._transport = transport
        self._source = WeightSourceAdapter(weights)
        self._address = address
        self._timeout_s = timeout_s
        self._stuck_timeout_s = stuck_timeout_s
        self._members: tuple[str, ...] = ()
        self._engine: TrainerWeightTransferEngine[Any] | None = None

    def connect(self, client: TransferClient) -> None:
        """Form a process group with the workers of a client, or reuse the last group if the workers are the same.

        Raises:
            EngineError: A worker did not join. Nothing was sent.
        """
        if self._engine is not None and self._members == client.names:
            self._engine.client = client
            return
        self.close()
        info = trainer_init_info(self._transport, self._address, client.world_size, timeout_s=self._timeout_s)
        try:
            # Joining has its own timeout, but the setup that NCCL does after it has none.
            with self._exit_if_stuck(client, after_s=self._timeout_s + self._stuck_timeout_s):
                self._engine = WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)
        except Exception as error:
            raise EngineError(f"cannot connect to {', '.join(client.names)} for a weight transfer: {error}") from error
        self._members = client.names
        logger.info(
            "weights=connected transport=%s workers=%s world_size=%d",
            self._transport,
            ",".join(self._members),
            client.world_size,
        )

    def send(self, client: TransferClient) -> None:
        """Send all weights to the workers of the last `connect`.

        The other ranks walk the weight source at the same time. This rank completes its pass even if sending fails.

        Raises:
            EngineError: At least one worker does not have the weights.
        """
        assert self._engine is not None
        try:
            with self._exit_if_stuck(client, after_s=self._stuck_timeout_s):
                self._engine.send_weights()
        except Exception as error:
            self.close()
            raise EngineError(f"weights were not sent to {', '.join(client.names)}: {error}") from error
        finally:
            self._source.complete_pass()

    @contextmanager
    def _exit_if_stuck(self, client: TransferClient, *, after_s: float) -> Iterator[None]:
        """End this process if the block does not end within `after_s` seconds after a worker failed."""
        timer = threading.Timer(after_s, _end_process)
        timer.daemon = True
        client.on_failure = timer.start
        try:
            yield
        finally:
            client.on_failure = None
            timer.cancel()

    def close(self) -> None:
        """Leave the process group, if any."""
        if self._engine is not None:
            self._engine.shutdown()
        self._engine, self._members = None, ()


def trainer_init_info(transport: str, address: str, world_size: int, *, timeout_s: float) -> TrainerInitInfo:
    """Return the initialization record for vLLM's trainer engine of a transport, for the rank that sends."""
    if transport == "ipc":
        return IPCTrainerInitInfo(rank=0)  # passes handles of the parameters' memory, without a copy
    place: dict[str, Any] = {"master_address": address, "master_port": _free_port(address), "world_size": world_size}
    if transport == "gloo":
        return GlooTrainerInitInfo(rank=0, timeout_s=timeout_s, **place)
    # Not packed: tensors are sent one by one on the stream that gathered them. vLLM's packed mode cuts chunks on its
    # own streams, and a chunk may hold tensors of several buckets, which DeepSpeed frees on the gathering stream.
    return NCCLTrainerInitInfo(rank=0, packed=False, **place)


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """Initialization record of `GlooTrainer`: address, world size and timeout of the process group."""

    backend: ClassVar[str] = "rlad_gloo"

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """CPU counterpart of vLLM's NCCL trainer engine, with the same order of calls."""

    init_info_cls = GlooTrainerInitInfo

    def __init__(self, *, client: VLLMWeightSyncClient, source: VllmWeightSource, group: GlooGroup) -> None:
        super().__init__(client=client, source=source)
        self._group: GlooGroup | None = group

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: VllmWeightSource | None = None
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
        with ThreadPoolExecutor(1) as executor:
            joined = executor.submit(client.init_weight_transfer_engine, payload)
            group = GlooGroup(address=address, port=port, rank=0, world_size=size, timeout_s=timeout_s)
            joined.result()
        return cls(client=client, source=source, group=group)

    def send_weights(self) -> None:
        assert self.source is not None
        assert self._group is not None
        metadata = self.source.metadata()
        update = {
            "names": [parameter.name for parameter in metadata],
            "dtype_names": [str(parameter.dtype).removeprefix("torch.") for parameter in metadata],
            "shapes": [list(parameter.shape) for parameter in metadata],
        }
        self.client.start_weight_update()
        with ThreadPoolExecutor(1) as executor:
            updated = executor.submit(self.client.update_weights, update)
            for _, tensor in self.source:
                self._group.broadcast(tensor.contiguous())
            updated.result()
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self._group = None  # closes its connections


WeightTransferTrainerFactory.register_engine("rlad_gloo", GlooTrainer)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _end_process() -> None:
    """End this process, the only way out of a collective whose other members are gone.

    Ray Train then restarts the ranks from the last checkpoint.
    """
    logger.critical(
        "weights=stuck a worker failed and the transfer does not end; this rank exits and will be restarted"
    )
    os._exit(STUCK)
