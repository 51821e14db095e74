"""Stand-ins for transfer tests: a learner of one rank and rollout workers without engines. The transfer is real."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from torch import nn

from actors.engines.vllm_engine.gloo_group import GlooGroup
from actors.engines.vllm_engine.settings import VllmSettings
from actors.messages import GroupSummary, SampleRequest, WeightsPublication
from rlad.contracts import WeightsManifest
from rlad.weight_file import layout_checksum

TIMEOUT_S = 60.0


class StubWorker:
    """Worker that receives tensors like an engine. Its groups contain the values of its weights instead of tokens."""

    def __init__(self, settings: VllmSettings, run_id: str) -> None:
        self.number = settings.seed
        self.tensors: dict[str, torch.Tensor] = {}
        self._version: int | None = 0
        self._group: GlooGroup | None = None
        self._joined = 0

    async def start(self) -> None:
        pass

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        self._group = None
        self._joined += 1
        self._group = await asyncio.to_thread(
            GlooGroup,
            address=init_info["master_address"],
            port=init_info["master_port"],
            rank=init_info["rank_offset"],
            world_size=init_info["world_size"],
            timeout_s=init_info["timeout_s"],
        )

    async def receive_weights(self, update_info: dict[str, Any], manifest: WeightsManifest) -> WeightsManifest:
        self._version = None
        await asyncio.to_thread(self._receive, update_info, manifest)
        self._version = manifest.version
        shapes = [tuple(tensor.shape) for tensor in self.tensors.values()]
        checksum = layout_checksum(list(self.tensors), update_info["dtype_names"], shapes)
        return WeightsManifest(
            version=manifest.version,
            checksum=checksum,
            num_bytes=sum(tensor.nbytes for tensor in self.tensors.values()),
        )

    def _receive(self, update_info: dict[str, Any], manifest: WeightsManifest) -> None:
        assert self._group is not None
        self.tensors = {}
        for name, dtype_name, shape in zip(
            update_info["names"], update_info["dtype_names"], update_info["shapes"], strict=True
        ):
            self.tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype_name))
            self._group.broadcast(self.tensors[name])
            self.on_tensor(manifest.version)

    def on_tensor(self, version: int) -> None:
        """Hook for subclasses, called after each tensor."""

    async def version(self) -> int | None:
        return self._version

    @ray.method(num_returns=2)
    async def sample(self, request: SampleRequest) -> tuple[GroupSummary, dict[str, np.ndarray]]:
        await asyncio.sleep(0.2)
        values = torch.cat([tensor.flatten() for tensor in self.tensors.values()]).numpy()
        summary = GroupSummary(
            uid=request.uid,
            attempt=request.attempt,
            prompt_tokens=len(request.prompt_ids),
            response_lengths=(1,),
            is_truncated=(False,),
            tokens_by_version={self._version or 0: 1},
        )
        return summary, {
            "values": values,
            "number": np.array(self.number),
            "joined": np.array(self._joined),
            "pid": np.array(os.getpid()),
        }

    async def close(self) -> None:
        pass


class DyingWorker(StubWorker):
    """Worker that exits after the first tensor of version 1, if it is the second worker of its pool."""

    def on_tensor(self, version: int) -> None:
        if self.number == 1 and version == 1:
            os._exit(1)


class StubLearner:
    """Learner with a real publisher and a model whose values all equal the policy version."""

    def __init__(self, broker: Any) -> None:
        from actors.engines.zero_engine.lora import student_weights
        from actors.engines.zero_engine.weight_source import WeightSource
        from actors.learner.broker_link import BrokerLink
        from actors.learner.weight_publisher import TransferPublisher

        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=180))
        self._model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        self._broker = BrokerLink(broker)
        weights = WeightSource(student_weights(self._model, None), is_partitioned=False)
        self._publisher = TransferPublisher("gloo", weights, self._broker, processes_per_worker=1, timeout_s=TIMEOUT_S)

    def start(self, first: int, steps: int) -> None:
        threading.Thread(target=self._run, args=(first, steps), daemon=True).start()

    def pid(self) -> int:
        return os.getpid()

    def _run(self, first: int, steps: int) -> None:
        def announce(publications: Sequence[WeightsPublication]) -> None:
            if publications[0].manifest.version == first:
                self._broker.report_started(list(publications))
            else:
                self._broker.finish_step(list(publications), {})

        for version in range(first, steps + 1):
            with torch.no_grad():
                for parameter in self._model.parameters():
                    parameter.fill_(version)
            self._publisher.publish(version, announce)
            if version < steps:
                self._publisher.before_shard(version, 0)
        self._publisher.until_dismissed(steps)
