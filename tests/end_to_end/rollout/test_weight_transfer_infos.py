"""What is said to vLLM's weight transfer, against vLLM's own records: places in a group, names of tensors, versions. Nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayActorError
from torch import nn
from vllm.distributed.weight_transfer.base import layerwise_groups
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferUpdateInfo

from actors.engines.vllm_engine import weight_loading as weight_transfer
from actors.engines.vllm_engine.gloo_group import GlooGroup
from actors.engines.vllm_engine.weight_receiving import GlooEngine, IpcEngine, NcclEngine
from actors.engines.vllm_engine.weight_sending import (
    STUCK,
    GlooTrainerInitInfo,
    TransferSession,
    WeightSourceAdapter,
    trainer_init_info,
)
from actors.engines.zero_engine.lora import student_weights
from actors.engines.zero_engine.weight_source import WeightSource
from actors.weights.transfer_client import RayTransferClient
from rlad.contracts import WeightsManifest
from rlad.errors import EngineError, WeightsMismatchError

pytestmark = pytest.mark.engine

MANIFEST = WeightsManifest(version=4, checksum="c", num_bytes=10)


def weights_of(model: nn.Module) -> WeightSource:
    return WeightSource(student_weights(model, None), is_partitioned=False)


def engine(kind: type, **vllm_settings: Any) -> Any:
    config = SimpleNamespace(parallel_config=SimpleNamespace(**vllm_settings), model_config=None)
    return kind(None, config, torch.device("cpu"), None)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
class Recorder:
    """A worker that only says what it was told."""

    def __init__(self, reports: WeightsManifest) -> None:
        self._reports = reports
        self._told: list[dict[str, Any]] = []

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        self._told.append(init_info)

    def receive_weights(self, update_info: dict[str, Any], manifest: WeightsManifest) -> WeightsManifest:
        self._told.append(update_info)
        return self._reports

    def version(self) -> int:
        return self._reports.version

    def told(self) -> list[dict[str, Any]]:
        return self._told


def receivers(*reports: WeightsManifest, processes: int = 1) -> tuple[RayTransferClient, list[Any]]:
    actors = [Recorder.remote(each) for each in reports]
    workers = {f"rollout-{index}": actor for index, actor in enumerate(actors)}
    return RayTransferClient(workers, manifest=MANIFEST, processes_per_worker=processes, timeout_s=60), actors


def test_every_process_of_every_worker_has_a_rank_of_its_own_behind_the_learner() -> None:
    """Three workers of two GPUs each: by vLLM's own arithmetic the ranks of the group are 0, the learner, and 1 to 6."""
    group, actors = receivers(MANIFEST, MANIFEST, MANIFEST, processes=2)
    info = trainer_init_info("nccl", "127.0.0.1", group.world_size, timeout_s=60)
    assert isinstance(info, NCCLTrainerInitInfo)
    assert (info.world_size, info.packed, info.is_sender) == (7, False, True)
    # As vLLM's trainer engine makes the payload.
    payload = worker_init_payload(
        NCCLWeightTransferInitInfo(
            master_address=info.master_address,
            master_port=info.master_port,
            rank_offset=1,
            world_size=info.world_size,
            packed=info.packed,
        )
    )
    group.init_weight_transfer_engine(payload)
    ranks = []
    for actor in actors:
        [told] = ray.get(actor.told.remote(), timeout=60)
        for rank_within in range(2):
            receiving = engine(NcclEngine, rank=rank_within, world_size=2, data_parallel_index=0)
            parsed = receiving.parse_init_info(told)
            assert isinstance(parsed, NCCLWeightTransferInitInfo)
            assert (parsed.master_port, parsed.world_size, parsed.packed) == (info.master_port, 7, False)
            ranks.append(parsed.rank_offset + receiving.parallel_config.rank)
    assert ranks == [1, 2, 3, 4, 5, 6]


def test_a_transfer_by_handles_has_no_ranks() -> None:
    group, [actor] = receivers(MANIFEST)
    assert trainer_init_info("ipc", "127.0.0.1", group.world_size, timeout_s=60) == IPCTrainerInitInfo(
        rank=0, packed=False
    )
    group.init_weight_transfer_engine({"packed": False})  # as vLLM's trainer engine says it
    [told] = ray.get(actor.told.remote(), timeout=60)
    assert engine(IpcEngine).parse_init_info(told).packed is False


def test_the_update_that_vllm_describes_is_read_with_its_version() -> None:
    source = WeightSourceAdapter(weights_of(nn.Sequential(nn.Linear(3, 2).bfloat16(), nn.Linear(2, 2))))
    metadata = source.metadata()
    update = NCCLWeightTransferUpdateInfo(
        names=[each.name for each in metadata],
        dtype_names=[str(each.dtype).split(".")[-1] for each in metadata],
        shapes=[list(each.shape) for each in metadata],
    )
    for kind in (NcclEngine, GlooEngine):
        parsed = engine(kind).parse_update_info({**asdict(update), "version": 4})
        assert parsed.version == 4
        assert parsed.names == ["0.weight", "0.bias", "1.weight", "1.bias"]
        assert parsed.dtype_names == ["bfloat16", "bfloat16", "float32", "float32"]
        assert parsed.shapes == [[2, 3], [2], [2, 2], [2]]
        with pytest.raises(ValueError, match="version"):
            engine(kind).parse_update_info(asdict(update))
    handles = [{"GPU-1": ()} for _ in metadata]
    assert engine(IpcEngine).parse_update_info({**asdict(update), "ipc_handles": handles, "version": 4}).version == 4
    with pytest.raises(ValueError, match="ipc_handles"):
        engine(IpcEngine).parse_update_info({**asdict(update), "version": 4})


def test_the_source_is_one_of_vllms_and_a_pass_that_was_left_is_completed() -> None:
    walked: list[str] = []

    class Watched(WeightSource):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in super().__iter__():
                walked.append(name)
                yield name, tensor

    source = WeightSourceAdapter(
        Watched(student_weights(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), None), is_partitioned=False)
    )
    names = [each.name for each in source.metadata()]
    assert (
        [name for group in source.groups() for name in group]
        == [name for group in layerwise_groups(names) for name in group]
        == names
    )
    assert [name for batch, _ in source.iter_groups() for name in batch] == names

    walked.clear()
    for name, _ in source:
        if name == "0.bias":
            break  # what was sending has failed
    source.complete_pass()
    assert walked == names
    walked.clear()
    source.complete_pass()  # of a transfer that failed before it began
    assert walked == names


def test_every_transport_has_an_engine_on_both_sides() -> None:
    assert weight_transfer.WeightsExtension  # imported in vLLM's processes, it registers them
    engines = {
        name: WeightTransferEngineFactory._registry[f"rlad_{name}"]()
        for name in ("object_store", "nccl", "ipc", "gloo")
    }
    assert engines == {
        "object_store": weight_transfer.ObjectStoreEngine,
        "nccl": NcclEngine,
        "ipc": IpcEngine,
        "gloo": GlooEngine,
    }
    for info in (NCCLTrainerInitInfo, IPCTrainerInitInfo, GlooTrainerInitInfo):
        assert info.backend in WeightTransferTrainerFactory._registry


def test_a_worker_that_reports_other_weights_has_failed_and_the_sender_is_told_at_once() -> None:
    other = WeightsManifest(version=3, checksum="c", num_bytes=10)
    group, _ = receivers(MANIFEST, other)
    told: list[bool] = []
    group.on_failure = lambda: told.append(True)
    with pytest.raises(EngineError, match="rollout-1: .*version=3.*; expected .*version=4"):
        group.update_weights({"names": []})
    assert group.failures.keys() == {"rollout-1"}
    assert told == [True]


def test_a_dead_worker_is_found_before_a_group_is_formed() -> None:
    group, actors = receivers(MANIFEST, MANIFEST)
    group.require_alive()
    ray.kill(actors[0])
    with pytest.raises(RayActorError):  # it may still answer a question or two
        while True:
            ray.get(actors[0].version.remote(), timeout=30)
    with pytest.raises(EngineError, match="rollout-0 was lost"):
        group.require_alive()
    assert group.failures.keys() == {"rollout-0"}


def send_to_one_that_refuses() -> None:
    """In a process of its own, which should not come to the end of this: its receiver has joined, fails, and never takes what is sent."""

    class Refusing:
        on_failure: Any = None
        names, world_size = ("rollout-0",), 2

        def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
            place = {"address": info["master_address"], "port": info["master_port"], "world_size": info["world_size"]}
            self.group = GlooGroup(**place, rank=info["rank_offset"], timeout_s=60)

        def start_weight_update(self) -> None: ...

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.on_failure()
            raise EngineError("it refuses")

        def finish_weight_update(self, weight_version: str | None = None) -> None: ...

    sender = TransferSession(
        "gloo", weights_of(nn.Linear(1000, 1000)), address="127.0.0.1", timeout_s=60, stuck_timeout_s=1
    )
    receivers = Refusing()
    sender.connect(receivers)
    sender.send(receivers)


def test_a_sender_that_no_receiver_lets_go_ends_its_process() -> None:
    process = get_context("spawn").Process(target=send_to_one_that_refuses)
    process.start()
    process.join(timeout=40)
    assert process.exitcode == STUCK


def test_weights_of_another_model_are_refused_before_the_model_is_touched(make_model: Any) -> None:
    receiving = engine(GlooEngine)
    receiving.model_config = SimpleNamespace(
        model=str(make_model(tied=True)), hf_config=SimpleNamespace(tie_word_embeddings=True)
    )
    update = {"names": ["model.norm.weight"], "dtype_names": ["float32"], "shapes": [[64]], "version": 4}
    with pytest.raises(WeightsMismatchError, match="version 4 does not fit the model"):
        receiving.receive_weights(receiving.parse_update_info(update))
    assert receiving.loaded == (0, ""), "what it came up with"
