"""Records passed to vLLM's weight transfer, checked with vLLM's own classes: ranks, tensors, versions, registration."""

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
from safetensors import safe_open
from torch import nn
from vllm.distributed.weight_transfer.base import layerwise_groups
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferUpdateInfo
from vllm.utils.import_utils import resolve_obj_by_qualname

from actors.engines.vllm_engine import executors, sampler, settings, weight_loading
from actors.engines.vllm_engine.gloo_group import GlooGroup
from actors.engines.vllm_engine.loaded_model import shapes_in
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

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

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
    """Worker that records its calls and reports a fixed manifest."""

    def __init__(self, reports: WeightsManifest) -> None:
        self._reports = reports
        self._calls: list[dict[str, Any]] = []

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        self._calls.append(init_info)

    def receive_weights(self, update_info: dict[str, Any], manifest: WeightsManifest) -> WeightsManifest:
        self._calls.append(update_info)
        return self._reports

    def version(self) -> int:
        return self._reports.version

    def calls(self) -> list[dict[str, Any]]:
        return self._calls


def transfer_client(*reports: WeightsManifest, processes: int = 1) -> tuple[RayTransferClient, list[Any]]:
    actors = [Recorder.remote(report) for report in reports]
    workers = {f"rollout-{index}": actor for index, actor in enumerate(actors)}
    return RayTransferClient(workers, manifest=MANIFEST, processes_per_worker=processes, timeout_s=60), actors


def test_every_engine_process_has_its_own_rank_after_the_learner() -> None:
    """Three workers with two GPUs each. By vLLM's own arithmetic the learner is rank 0 and the workers are 1 to 6."""
    client, actors = transfer_client(MANIFEST, MANIFEST, MANIFEST, processes=2)
    info = trainer_init_info("nccl", "127.0.0.1", client.world_size, timeout_s=60)
    assert isinstance(info, NCCLTrainerInitInfo)
    assert (info.world_size, info.packed, info.is_sender) == (7, False, True)
    # vLLM's trainer engine builds the payload like this.
    payload = worker_init_payload(
        NCCLWeightTransferInitInfo(
            master_address=info.master_address,
            master_port=info.master_port,
            rank_offset=1,
            world_size=info.world_size,
            packed=info.packed,
        )
    )
    client.init_weight_transfer_engine(payload)
    ranks = []
    for actor in actors:
        [init_info] = ray.get(actor.calls.remote(), timeout=60)
        for rank_within in range(2):
            receiving = engine(NcclEngine, rank=rank_within, world_size=2, data_parallel_index=0)
            parsed = receiving.parse_init_info(init_info)
            assert isinstance(parsed, NCCLWeightTransferInitInfo)
            assert (parsed.master_port, parsed.world_size, parsed.packed) == (info.master_port, 7, False)
            ranks.append(parsed.rank_offset + receiving.parallel_config.rank)
    assert ranks == [1, 2, 3, 4, 5, 6]


def test_ipc_transfer_has_no_ranks() -> None:
    client, [actor] = transfer_client(MANIFEST)
    assert trainer_init_info("ipc", "127.0.0.1", client.world_size, timeout_s=60) == IPCTrainerInitInfo(
        rank=0, packed=False
    )
    client.init_weight_transfer_engine({"packed": False})  # the payload of vLLM's trainer engine
    [init_info] = ray.get(actor.calls.remote(), timeout=60)
    assert engine(IpcEngine).parse_init_info(init_info).packed is False


def test_update_records_of_vllm_are_parsed_with_the_version() -> None:
    source = WeightSourceAdapter(weights_of(nn.Sequential(nn.Linear(3, 2).bfloat16(), nn.Linear(2, 2))))
    metadata = source.metadata()
    update = NCCLWeightTransferUpdateInfo(
        names=[parameter.name for parameter in metadata],
        dtype_names=[str(parameter.dtype).split(".")[-1] for parameter in metadata],
        shapes=[list(parameter.shape) for parameter in metadata],
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


def test_source_adapter_has_vllms_interface_and_completes_an_interrupted_pass() -> None:
    walked: list[str] = []

    class Watched(WeightSource):
        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in super().__iter__():
                walked.append(name)
                yield name, tensor

    source = WeightSourceAdapter(
        Watched(student_weights(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), None), is_partitioned=False)
    )
    names = [parameter.name for parameter in source.metadata()]
    assert (
        [name for group in source.groups() for name in group]
        == [name for group in layerwise_groups(names) for name in group]
        == names
    )
    assert [name for batch, _ in source.iter_groups() for name in batch] == names

    walked.clear()
    for name, _ in source:
        if name == "0.bias":
            break  # as in a transfer that fails half way
    source.complete_pass()
    assert walked == names
    walked.clear()
    source.complete_pass()  # as after a transfer that failed before it began
    assert walked == names


def test_every_transport_is_registered_with_vllm_on_both_sides() -> None:
    assert weight_loading.WeightsExtension  # importing its module registers the engines
    engines = {
        name: WeightTransferEngineFactory._registry[f"rlad_{name}"]()
        for name in ("object_store", "nccl", "ipc", "gloo")
    }
    assert engines == {
        "object_store": weight_loading.ObjectStoreEngine,
        "nccl": NcclEngine,
        "ipc": IpcEngine,
        "gloo": GlooEngine,
    }
    for info in (NCCLTrainerInitInfo, IPCTrainerInitInfo, GlooTrainerInitInfo):
        assert info.backend in WeightTransferTrainerFactory._registry


def test_paths_that_vllm_imports_by_name_exist(make_model: Any) -> None:
    """vLLM imports these when an engine starts, so an import rename does not reach them."""
    assert resolve_obj_by_qualname(sampler._EXTENSION) is weight_loading.WeightsExtension
    for tensor_parallel, expected in ((1, executors.UniProcessExecutor), (2, executors.MultiProcessExecutor)):
        vllm_settings = settings.VllmSettings(
            model_path=str(make_model(tied=True)),
            dtype="float32",
            max_sequence_tokens=1,
            max_sequences=1,
            seed=0,
            on_gpu=False,
            tensor_parallel=tensor_parallel,
            gpu_memory_fraction=0.9,
            kv_cache_gib=1,
            threads=1,
        )
        executor = settings.engine_args(vllm_settings).distributed_executor_backend
        assert resolve_obj_by_qualname(executor) is expected


def test_worker_that_reports_another_version_fails_the_update_and_triggers_the_callback() -> None:
    other = WeightsManifest(version=3, checksum="c", num_bytes=10)
    client, _ = transfer_client(MANIFEST, other)
    callbacks: list[bool] = []
    client.on_failure = lambda: callbacks.append(True)
    with pytest.raises(EngineError, match="rollout-1: .*version=3.*; expected .*version=4"):
        client.update_weights({"names": []})
    assert client.failures.keys() == {"rollout-1"}
    assert callbacks == [True]


def test_dead_worker_is_detected_before_a_process_group_is_formed() -> None:
    client, actors = transfer_client(MANIFEST, MANIFEST)
    client.require_alive()
    ray.kill(actors[0])
    with pytest.raises(RayActorError):  # the actor may still answer a few calls
        while True:
            ray.get(actors[0].version.remote(), timeout=30)
    with pytest.raises(EngineError, match="rollout-0 was lost"):
        client.require_alive()
    assert client.failures.keys() == {"rollout-0"}


def send_to_a_refusing_worker() -> None:
    """Send to a worker that joins, fails, and never receives. This process must end itself before the function ends."""

    class RefusingClient:
        on_failure: Any = None
        names, world_size = ("rollout-0",), 2

        def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
            place = {"address": info["master_address"], "port": info["master_port"], "world_size": info["world_size"]}
            self.group = GlooGroup(**place, rank=info["rank_offset"], timeout_s=60)

        def start_weight_update(self) -> None: ...

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.on_failure()
            raise EngineError("the worker refuses")

        def finish_weight_update(self, weight_version: str | None = None) -> None: ...

    session = TransferSession(
        "gloo", weights_of(nn.Linear(1000, 1000)), address="127.0.0.1", timeout_s=60, stuck_timeout_s=1
    )
    client = RefusingClient()
    session.connect(client)
    session.send(client)


def test_stuck_transfer_ends_the_process() -> None:
    process = get_context("spawn").Process(target=send_to_a_refusing_worker)
    process.start()
    process.join(timeout=300)  # imports vLLM, which takes 20 s on an idle machine
    assert process.exitcode == STUCK


@pytest.mark.parametrize("kind", [GlooEngine, NcclEngine, IpcEngine])
def test_update_without_one_tensor_is_refused_before_the_model_changes(make_model: Any, kind: type) -> None:
    """The model is None here: an engine that touched it would fail with another error."""
    receiving = engine(kind)
    receiving.model_config = SimpleNamespace(
        model=str(make_model(tied=True)), hf_config=SimpleNamespace(tie_word_embeddings=True)
    )
    with safe_open(make_model(tied=True) / "model.safetensors", framework="pt") as file:
        shapes = {name: shape for name, shape in shapes_in(file).items() if name != "lm_head.weight"}
    for missing in shapes:
        names = [name for name in shapes if name != missing]
        update = SimpleNamespace(
            names=names, dtype_names=["float32"] * len(names), shapes=[shapes[name] for name in names], version=4
        )
        with pytest.raises(WeightsMismatchError, match=rf"version 4 does not fit the model at .*\['{missing}'\]"):
            receiving.receive_weights(update)
        assert receiving.loaded == (0, ""), "the initial weights"
