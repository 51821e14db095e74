"""Weight source under real ZeRO: yields the declared weights on every rank and gathers one bucket at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from actors.engines.zero_engine.lora import Adapter, StudentWeight, student_weights
from actors.engines.zero_engine.trainer import ZeroTrainer
from actors.engines.zero_engine.weight_source import TensorLayout, WeightSource
from rlad.config.learner import LearnerConfig
from rlad.objectives import build_objective
from rlad.weight_file import layout_checksum, safetensors_parts

from .learner_ranks import Ranks
from .learner_reference import OBJECTIVE

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def walk(model_path: Path, stage: int) -> tuple[list[TensorLayout], list[tuple[str, Tensor]], dict[str, Tensor] | None]:
    """Return the declared layouts, the yielded weights and the gathered weights of a trainer on a rank."""
    trainer = ZeroTrainer(
        model_path=str(model_path),
        dtype=torch.float32,
        config=LearnerConfig(zero_stage=stage),
        objective=build_objective(OBJECTIVE),
        temperature=1.0,
        total_updates=1,
    )
    weights = trainer.weight_source()
    return weights.layouts(), [(name, tensor.clone()) for name, tensor in weights], trainer.gather_weights()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stage", [0, 3])
def test_every_rank_walks_the_whole_model_in_the_declared_order(
    make_model: MakeModel, two_ranks: Ranks, stage: int, tied: bool
) -> None:
    model_path = make_model(tied=tied)
    # The names and order of transformers. A tied output layer has no parameter of its own.
    expected = dict(AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).named_parameters())
    assert ("lm_head.weight" in expected) == (not tied)
    [first, second] = two_ranks.run(walk, model_path, stage)
    for layouts, walked, _ in (first, second):
        assert [layout.name for layout in layouts] == [name for name, _ in walked] == list(expected)
        for layout, (name, tensor) in zip(layouts, walked, strict=True):
            assert (layout.dtype, layout.shape) == (tensor.dtype, tuple(tensor.shape))
            assert layout.num_bytes == tensor.nbytes
            assert torch.equal(tensor, expected[name])
    gathered = first[2]
    assert second[2] is None
    assert list(gathered) == list(expected)
    assert all(torch.equal(gathered[name], expected[name]) for name in expected)
    published = sum(part.nbytes for part in safetensors_parts(gathered)[1:])
    assert published == sum(layout.num_bytes for layout in first[0]), "the declared size must be the published size"


def test_layout_checksum_depends_on_names_dtypes_shapes_and_order() -> None:
    layout = (["a", "b"], ["float32", "bfloat16"], [(2, 3), (4,)])
    changed = [
        (["b", "a"], layout[1], layout[2]),
        (layout[0], ["float32", "float32"], layout[2]),
        (layout[0], layout[1], [(3, 2), (4,)]),
        (["a"], ["float32"], [(2, 3)]),
    ]
    assert layout_checksum(*layout) == layout_checksum(layout[0], layout[1], [[2, 3], [4]]), (
        "lists and tuples must give the same checksum"
    )
    assert len({layout_checksum(*layout), *(layout_checksum(*other) for other in changed)}) == 5


FLOAT = 4
SIZES = {
    "0.weight": 10 * 6 * FLOAT,
    "1.weight": 5 * 10 * FLOAT,
    "2.weight": 40 * 5 * FLOAT,
    "3.weight": 2 * 40 * FLOAT,
    "4.weight": 3 * 2 * FLOAT,
}


def partition(model: nn.Module) -> None:
    import deepspeed

    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
        # Without this threshold DeepSpeed would not partition parameters as small as these.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings, dist_init_required=False)


def whole(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.numel()]


def largest_gathered(bucket_bytes: int) -> tuple[list[list[str]], list[tuple[str, float]], int]:
    """Return the sets of parameters gathered at once, the error of each weight, and the number left gathered."""
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Linear(inputs, outputs, bias=False) for inputs, outputs in ((6, 10), (10, 5), (5, 40), (40, 2), (2, 3)))
    )
    sums = {name: float(parameter.detach().double().sum()) for name, parameter in model.named_parameters()}
    partition(model)
    assert whole(model) == []
    states, differences = [], []
    for name, tensor in WeightSource(student_weights(model, None), is_partitioned=True, bucket_bytes=bucket_bytes):
        if not states or states[-1] != whole(model):
            states.append(whole(model))
        differences.append((name, abs(float(tensor.double().sum()) - sums[name])))
    dist.barrier()
    return states, differences, len(whole(model))


@pytest.mark.parametrize(
    ("bucket_bytes", "buckets"),
    [
        (1, [["0"], ["1"], ["2"], ["3"], ["4"]]),
        (440, [["0", "1"], ["2"], ["3", "4"]]),  # 240 + 200 just fit; 800 exceeds a bucket and is gathered on its own
        (439, [["0"], ["1"], ["2"], ["3", "4"]]),
        (1_000_000, [["0", "1", "2", "3", "4"]]),
    ],
)
def test_at_most_one_bucket_is_gathered_at_a_time(
    two_ranks: Ranks, bucket_bytes: int, buckets: list[list[str]]
) -> None:
    for states, differences, left in two_ranks.run(largest_gathered, bucket_bytes):
        assert states == [[f"{layer}.weight" for layer in bucket] for bucket in buckets]
        for state in states:
            assert len(state) == 1 or sum(SIZES[name] for name in state) <= bucket_bytes
        assert [name for name, _ in differences] == list(SIZES)
        assert max(difference for _, difference in differences) < 1e-6
        assert left == 0


def walk_adapted(bucket_bytes: int) -> tuple[list[list[str]], list[tuple[str, tuple[int, ...], float]]]:
    """Return the sets of parameters gathered at once, and the name, shape and error of each adapted weight.

    The error is the distance from W + 3 B A.
    """
    torch.manual_seed(1)
    shapes = {"w0": (10, 6), "a0": (2, 6), "b0": (10, 2), "w1": (5, 10), "a1": (2, 10), "b1": (5, 2)}
    start = {name: torch.randn(shape) for name, shape in shapes.items()}
    model = nn.ParameterDict({name: nn.Parameter(tensor.clone()) for name, tensor in start.items()})
    partition(model)
    weights = WeightSource(
        [
            StudentWeight(
                name=f"w{layer}",
                parameter=model[f"w{layer}"],
                adapter=Adapter(a=model[f"a{layer}"], b=model[f"b{layer}"], scale=3.0),
            )
            for layer in (0, 1)
        ],
        is_partitioned=True,
        bucket_bytes=bucket_bytes,
    )
    shape_of = {layout.name: layout.shape for layout in weights.layouts()}
    states, found = [], []
    for name, tensor in weights:
        if not states or states[-1] != whole(model):
            states.append(whole(model))
        exact = (
            start[name].double() + 3 * start[name.replace("w", "b")].double() @ start[name.replace("w", "a")].double()
        )
        found.append((name, shape_of[name], float((tensor.double() - exact).abs().max())))
    dist.barrier()
    return states, found


@pytest.mark.parametrize(("bucket_bytes", "buckets"), [(687, ["0", "1"]), (688, ["01"])])
def test_adapter_is_gathered_with_its_weight_and_counts_in_the_bucket(
    two_ranks: Ranks, bucket_bytes: int, buckets: list[str]
) -> None:
    """Weight, A and B have 60 + 12 + 20 and 50 + 20 + 10 entries of 4 bytes, 688 bytes in total."""
    for states, found in two_ranks.run(walk_adapted, bucket_bytes):
        assert [sorted(state) for state in states] == [
            sorted(f"{kind}{layer}" for kind in "wab" for layer in bucket) for bucket in buckets
        ]
        assert [(name, shape) for name, shape, _ in found] == [("w0", (10, 6)), ("w1", (5, 10))]
        assert max(difference for *_, difference in found) < 1e-5
