"""Forecast: formulas computed by hand on a device with round figures, and forecasts of the shipped configurations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import Qwen3Config

from pipelines.cli.forecast_options import pool_costs
from pipelines.forecast.assumptions import Assumptions, Work, work_of_step
from pipelines.forecast.costs import Engine, Machine, forward_flops, training_flops
from pipelines.forecast.devices import Device, find_device
from pipelines.forecast.pools import PoolCosts
from pipelines.forecast.sizes import splits, spread_of
from pipelines.forecast.step import LONGEST_RESPONSE, Sizes, cost_of_step, served, sizes_of, step_time
from pipelines.forecast.tables import forecast
from pipelines.planning.model_shape import ModelShape
from pipelines.simulation.workload import Lengths
from rlad.config import LoraConfig, RunConfig, load_run_config
from rlad.errors import PlanError

CONFIGS = Path(__file__).parents[4] / "configs"
ROUND = Device(
    name="round",
    title="ROUND",
    memory_gib=80,
    memory_bytes_s=1e12,
    bf16_flops=1e14,
    peer_bytes_s=1e11,
    host_bytes_s=1e10,
    source="made up",
)
FULL_SPEED = Assumptions(
    memory_share=1,
    forward_share=1,
    training_share=1,
    link_share=1,
    engine_ms=1,
    verdict_ms=10,
    network_gbit=80,
    gpus_per_node=8,
    store_gbit=40,
    delta_share=0.1,
    delta_gb_s=10,
)
MACHINE = Machine(device=ROUND, assumptions=FULL_SPEED)
SHAPE = ModelShape(
    parameters=10**9,
    hidden=1000,
    layers=10,
    vocabulary=1000,
    attention_width=1000,
    kv_values_per_token=10_000,
    max_tokens=10**5,
)


def shape_directory(directory: Path, *, hidden: int, layers: int, feed_forward: int, heads: int, tied: bool) -> Path:
    Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=tied,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("shapes")
    return {
        "0.6B": shape_directory(root / "0.6B", hidden=1024, layers=28, feed_forward=3072, heads=16, tied=True),
        "1.7B": shape_directory(root / "1.7B", hidden=2048, layers=28, feed_forward=6144, heads=16, tied=True),
        "8B": shape_directory(root / "8B", hidden=4096, layers=36, feed_forward=12288, heads=32, tied=False),
        "32B": shape_directory(root / "32B", hidden=5120, layers=64, feed_forward=25600, heads=64, tied=False),
    }


def engine(**changes: float) -> Engine:
    return Engine(
        **{
            "machine": MACHINE,
            "shape": SHAPE,
            "dtype": "bfloat16",
            "devices": 1,
            "max_sequences": 64,
            "cache_tokens": 64_000,
        }
        | changes
    )


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=float)


def test_forward_pass_counts_parameters_and_attention() -> None:
    # 3 tokens and 1: 2 * 1e9 * 4 + 2 * 10 layers * 1000 wide * (9 + 1).
    assert forward_flops(SHAPE, array(3, 1)) == 8e9 + 200_000
    assert training_flops(SHAPE, array(3, 1), checkpointing=False) == 3 * (8e9 + 200_000)
    assert training_flops(SHAPE, array(3, 1), checkpointing=True) == 4 * (8e9 + 200_000)
    assert training_flops(SHAPE, array(3, 1), checkpointing=False, frozen=True) == 2 * 8e9 + 3 * 200_000


def test_decoding_is_bound_by_memory_or_operations() -> None:
    # One sequence: 2 GB of weights and 1000 tokens * 20 kB at 1 TB/s, plus 1 ms of the engine.
    one = engine().decode_s(array(1), array(1000))
    assert one == pytest.approx([2.02e-3 + 1e-3])
    # 200 sequences without context: 200 * 2e9 operations at 1e14 per second take 4 ms, the weights 2 ms.
    assert engine().decode_s(array(200), array(0)) == pytest.approx([4e-3 + 1e-3])
    # Two devices: half of that, and two all-reduces per layer that move the hidden state: 40 kB per token at 100 GB/s.
    pair = engine(devices=2).decode_s(array(200), array(0))
    assert pair == pytest.approx([2e-3 + 1e-3 + 200 * 2 * 10 * 1000 * 2 / 1e11])


def test_cache_bounds_concurrent_sequences() -> None:
    assert engine().slots(array(100, 1000, 3000, 10**6)).tolist() == [64, 64, 21, 1]


def test_optimizer_step_is_adam_on_a_shard_and_a_ring() -> None:
    # One rank: 28 bytes per parameter at 1 TB/s. Four ranks: a quarter of that, and 3/4 of 4 GB at 100 GB/s.
    assert MACHINE.optimizer_s(10**9, 1, devices=1, offloaded=False) == pytest.approx(0.028)
    assert MACHINE.optimizer_s(10**9, 4, devices=4, offloaded=False) == pytest.approx(0.007 + 0.03)
    # Sixteen ranks use the network: 15/16 of 4 GB at 10 GB/s. Offloaded: 4 bytes per parameter of the shard at 10 GB/s.
    assert MACHINE.optimizer_s(10**9, 16, devices=16, offloaded=True) == pytest.approx(4e9 / 16 / 1e10 + 0.375)


def test_groups_are_served_in_order_of_arrival() -> None:
    # One every 2 s: the first starts at 0, the second waits until 2, the third and fourth arrive at 9.
    assert served(array(0, 1, 9, 9), 8, 2).tolist() == [2, 4, 11, 13]
    # Two replicas of 2 s per group: one can start every second.
    assert served(array(0, 0, 0), 3, 2).tolist() == [2, 3, 4]


def test_lengths_are_quantiles_of_their_distribution() -> None:
    lengths = Lengths(median=100, p99_over_median=10, longest=1200, group_size=8)
    work = work_of_step(lengths, groups=100, prompt_tokens=50)
    assert len(work.lengths) == 800
    assert np.quantile(work.lengths, 0.5) == pytest.approx(100, rel=0.02)
    assert np.quantile(work.lengths, 0.99) == pytest.approx(1000, rel=0.03)
    assert work.lengths.max() == 1200
    # Half of the groups have a response above quantile 0.5^(1/8) = 0.917 of all.
    assert np.median(work.longest_of_groups) == pytest.approx(np.quantile(work.lengths, 0.917), rel=0.03)
    equal = Work(groups=2, prompt_tokens=50, lengths=array(10, 10, 10, 10))
    assert (equal.mean_context, equal.response_tokens, equal.longest_of_groups.tolist()) == (55, 40, [10, 10])


def round_config(student: Path, teacher: Path, **training: int) -> RunConfig:
    settings = {"prompts_per_step": 4, "max_staleness": 0, **training}
    overrides = [
        f"student.path={student}",
        f"teacher.path={teacher}",
        *(f"training.{name}={value}" for name, value in settings.items()),
    ]
    return load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", overrides)


@pytest.fixture
def costs(qwen: dict[str, Path]) -> PoolCosts:
    """4 groups of 8 responses of 100 tokens, prompts of 50; 4 rollout workers, 2 teacher replicas, 2 ranks."""
    config = round_config(qwen["0.6B"], qwen["8B"])
    return PoolCosts(config, MACHINE, Work(groups=4, prompt_tokens=50, lengths=np.full(32, 100.0)))


STUDENT, TEACHER = 596_049_920, 8_190_735_360  # parameters of the two shapes


def test_on_policy_decoding_sums_over_positions(costs: PoolCosts) -> None:
    decoding = costs.on_policy(4)  # one group per worker: 8 sequences
    kv_bytes = 2 * 28 * 8 * 128 * 2
    read = sum(STUDENT * 2 + 8 * (50 + position) * kv_bytes for position in range(100))
    prefill = (2 * STUDENT * 50 + 2 * 28 * 2048 * 50**2) / 1e14
    assert decoding.seconds == pytest.approx(read / 1e12 + 100 * 1e-3 + prefill)
    assert decoding.sequences == 8
    # With three workers, one has two groups and is the slowest. Eight are no faster than four.
    assert costs.on_policy(3).seconds == pytest.approx(costs.on_policy(2).seconds)
    assert costs.on_policy(8).seconds == decoding.seconds


def test_working_ahead_fills_engines_up_to_the_staleness(costs: PoolCosts) -> None:
    decoding = costs.ahead(4, staleness=1)
    # Equal lengths: 64 responses of two steps are in flight on 4 workers, 16 each, with 50 + 100 / 2 tokens on average.
    token_s = (STUDENT * 2 + 16 * 100 * 2 * 28 * 8 * 128 * 2) / 1e12 + 1e-3
    assert decoding.sequences == 16
    assert decoding.token_s == pytest.approx(token_s)
    prefill = (2 * STUDENT * 50 + 2 * 28 * 2048 * 50**2) / 1e14
    assert decoding.seconds == pytest.approx(32 * 100 * token_s / 64 + prefill)
    assert decoding.longest_s == pytest.approx(100 * token_s)


def test_teacher_scores_prompts_with_responses_and_replicas_share_groups(costs: PoolCosts) -> None:
    whole = (2 * TEACHER * 32 * 150 + 2 * 36 * 4096 * 32 * 150**2) / 1e14
    assert costs.scoring("teacher", 1).seconds == pytest.approx(whole)
    assert costs.scoring("teacher", 2).seconds == pytest.approx(whole / 2)
    assert costs.scoring("teacher", 9).seconds == pytest.approx(whole / 4)  # there are four groups
    assert costs.scoring("teacher", 9).group_s == pytest.approx(whole / 4)


def test_last_part_of_learning_is_a_micro_batch_or_an_update(costs: PoolCosts) -> None:
    whole = 4 * (2 * STUDENT * 32 * 150 + 2 * 28 * 2048 * 32 * 150**2) / 1e14  # activations are recomputed
    learning = costs.learning(2)
    assert learning.seconds == pytest.approx(whole / 2)
    assert learning.last_part_s == pytest.approx(whole / 2)  # 4,800 tokens are less than 2 x 65,536
    config = costs.config.model_copy(
        update={"learner": costs.config.learner.model_copy(update={"micro_batch_tokens": 600})}
    )
    assert PoolCosts(config, MACHINE, costs.work).learning(2).last_part_s == pytest.approx(whole / 2 * 1200 / 4800)


def test_adapters_save_gradients_of_frozen_weights_and_optimizer_time(costs: PoolCosts) -> None:
    config = costs.config.model_copy(
        update={"learner": costs.config.learner.model_copy(update={"lora": LoraConfig(rank=16)})}
    )
    learning = PoolCosts(config, MACHINE, costs.work).learning(2)
    assert learning.seconds == pytest.approx((6 * STUDENT * 32 * 150 + 4 * 2 * 28 * 2048 * 32 * 150**2) / 1e14 / 2)
    sizes = [
        (1024, 2048),
        *2 * [(1024, 1024)],
        (2048, 1024),
        *2 * [(1024, 3072)],
        (3072, 1024),
    ]  # q, k, v, o, gate, up, down
    trained = 28 * 16 * sum(map(sum, sizes))
    assert learning.update_s == pytest.approx(MACHINE.optimizer_s(trained, 2, devices=2, offloaded=False))


def test_weight_update_uses_the_network_beyond_one_node(costs: PoolCosts) -> None:
    assert costs.weights_s(8) == pytest.approx(2 * STUDENT * 2 / 1e10)
    # Transfers between object stores have 5 GB/s.
    assert costs.weights_s(9) == pytest.approx(2 * STUDENT * 2 / 1e10 + STUDENT * 2 / 5e9)


def test_weight_update_to_many_nodes_takes_far_less_than_one_copy_after_the_other(costs: PoolCosts) -> None:
    here, copy = 2 * STUDENT * 2 / 1e10, STUDENT * 2 / 5e9
    away = costs.weights_s(41 * 8) - here
    assert 2 * copy < away < 12 * copy


def test_weight_deltas_send_less_and_are_encoded_first(costs: PoolCosts) -> None:
    """One of four versions is full, and three have a tenth of its size."""
    weights = costs.config.weights.model_copy(update={"full_every": 4})
    found = PoolCosts(costs.config.model_copy(update={"weights": weights}), MACHINE, costs.work)
    size = STUDENT * 2
    encoding = 0.75 * size / 1e10
    assert found.weights_s(8) == pytest.approx(2 * size / 1e10 + encoding)
    assert found.weights_s(9) == pytest.approx(2 * size / 1e10 + encoding + (0.25 + 0.75 * 0.1) * size / 5e9)


def test_direct_transfer_to_other_nodes_takes_one_copy(costs: PoolCosts) -> None:
    weights = costs.config.weights.model_copy(update={"transport": "nccl"})
    found = PoolCosts(costs.config.model_copy(update={"weights": weights}), MACHINE, costs.work)
    assert found.weights_s(800) == pytest.approx(3 * STUDENT * 2 / 1e10)  # the network also has 10 GB/s


def test_on_policy_step_ends_after_the_last_group(costs: PoolCosts) -> None:
    """All responses have the same length, so all groups complete at once and sampling hides nothing."""
    sizes = sizes_of(costs.config)
    found = step_time(costs, sizes, staleness=0)
    decoding, scoring, learning = costs.on_policy(4), costs.scoring("teacher", 2), costs.learning(2)
    # Two replicas score four groups. One starts every half of a group's time, so the last ends after 2.5 times that.
    last_scored = max(decoding.seconds + 2.5 * scoring.group_s, decoding.seconds + 8 * 0.01)
    assert found.seconds == pytest.approx(last_scored + learning.seconds + learning.update_s + costs.weights_s(8))
    assert found.exposed_s == pytest.approx(found.seconds - decoding.seconds)
    assert found.bound_by == "teacher"
    assert found.busy["verifier"] == pytest.approx(0.08)


def test_later_passes_are_exposed_and_their_updates_are_paid(costs: PoolCosts, qwen: dict[str, Path]) -> None:
    """Three passes of two updates: three times the forward and backward passes, and six optimizer steps instead of one.

    The last micro-batches are those of one update, half of a pass.
    """
    config = round_config(qwen["0.6B"], qwen["8B"], passes=3, updates_per_step=2)
    repeated = PoolCosts(config, MACHINE, costs.work)
    once, thrice = costs.learning(2), repeated.learning(2)
    assert thrice.seconds == pytest.approx(3 * once.seconds)
    assert thrice.last_part_s == pytest.approx(once.seconds / 2)
    sizes = sizes_of(config)
    found, single = step_time(repeated, sizes, staleness=0), step_time(costs, sizes, staleness=0)
    assert found.seconds - single.seconds == pytest.approx(2 * once.seconds + 5 * once.update_s)
    assert found.busy["learner"] == pytest.approx(3 * once.seconds + 6 * once.update_s)


def test_step_that_works_ahead_is_bound_by_the_slowest_pool(costs: PoolCosts) -> None:
    found = step_time(costs, sizes_of(costs.config), staleness=3)
    assert (found.bound_by, found.seconds) == ("teacher", costs.scoring("teacher", 2).seconds)
    many = Sizes(rollout=4, scorers={"teacher": 4}, learner=64)
    assert step_time(costs, many, staleness=1).bound_by == LONGEST_RESPONSE


def test_groups_that_end_with_the_longest_responses_wait_for_the_teacher_while_working_ahead(costs: PoolCosts) -> None:
    """All responses have the same length, so the teacher and the learner begin when the longest response has ended."""
    found = step_time(costs, Sizes(rollout=1, scorers={"teacher": 2}, learner=64), staleness=1)
    scoring, learning = costs.scoring("teacher", 2), costs.learning(64)
    prefill = (2 * STUDENT * 50 + 2 * 28 * 2048 * 50**2) / 1e14
    # Two replicas score four groups. One starts every half of a group's time, so the last ends after 2.5 times that.
    last_scored = costs.ahead(1, staleness=1).longest_s + prefill + 2.5 * scoring.group_s
    way = last_scored + learning.seconds + learning.update_s + costs.weights_s(69)
    assert way / 2 > max(found.busy.values())
    assert found.bound_by == LONGEST_RESPONSE
    assert found.seconds == pytest.approx(way / 2)


def test_cost_counts_idle_devices() -> None:
    assert cost_of_step(90, 8, price_per_hour=2.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "student", "teacher", "device", "staleness"),
    [
        ("qwen3_0.6b_kk_2k", "0.6B", "8B", "h100", 0),
        ("qwen3_1.7b_kk_8k", "1.7B", "8B", "h100", 2),
        ("qwen3_8b_math_30k", "8B", "32B", "h200", 1),
    ],
)
def test_no_neighbouring_split_is_faster_than_the_advice(
    qwen: dict[str, Path], name: str, student: str, teacher: str, device: str, staleness: int
) -> None:
    overrides = [
        f"student.path={qwen[student]}",
        f"teacher.path={qwen[teacher]}",
        f"training.max_staleness={staleness}",
    ]
    config = load_run_config(CONFIGS / f"{name}.yaml", overrides)
    costs, lengths = pool_costs(config, device, median_tokens=None, tail=10, prompt_tokens=256, assume=None)
    found = forecast(costs, lengths)
    assert found.fastest is not None
    assert found.fastest.time.seconds <= found.configured.seconds
    assert sum(found.fastest.sizes.devices(config).values()) <= found.devices
    step = config.learner.sequence_parallel  # ranks that share rows come and go together
    for pool, change in (("rollout", step), ("rollout", -step)):
        sizes = found.fastest.sizes
        other = Sizes(rollout=sizes.rollout + change, scorers=sizes.scorers, learner=max(step, sizes.learner - change))
        if other.rollout > 0 and sum(other.devices(config).values()) <= found.devices:
            assert step_time(costs, other, staleness=staleness).seconds >= found.fastest.time.seconds - 1e-9, pool
    assert found.ahead[2].seconds <= found.ahead[1].seconds < found.on_policy.seconds
    text = " ".join(found.sentences(price_per_hour=2.0))
    assert "assumptions: responses of" in text
    assert f"cost: {found.configured.seconds / 3600 * found.devices * 2:,.2f} per step" in text


def test_splits_respect_devices_and_learner_memory(qwen: dict[str, Path]) -> None:
    config = load_run_config(
        CONFIGS / "qwen3_8b_math_30k.yaml",
        [f"student.path={qwen['8B']}", f"teacher.path={qwen['32B']}", "learner.sequence_parallel=1"],
    )
    costs, _ = pool_costs(config, "h100", median_tokens=2000, tail=5, prompt_tokens=256, assume=None)
    ranked = splits(costs, 16, staleness=0)
    # 18 bytes of 8.2 billion parameters are 137 GiB, and each rank needs 21 more: three ranks of 80 GiB suffice.
    assert min(split.sizes.learner for split in ranked) == 3
    assert all(
        split.sizes.rollout + 2 * split.sizes.scorers["teacher"] + split.sizes.learner in (15, 16) for split in ranked
    )
    assert [split.time.seconds for split in ranked] == sorted(split.time.seconds for split in ranked)
    few = spread_of(ranked, 4)
    assert ranked[0] in few
    assert len({split.sizes.rollout for split in few}) == len(few) <= 4
    assert [split.sizes for split in splits(costs, 6, staleness=0)] == [
        Sizes(rollout=1, scorers={"teacher": 1}, learner=3)
    ]
    assert splits(costs, 5, staleness=0) == []


def test_runs_that_cannot_be_forecast_are_refused(qwen: dict[str, Path]) -> None:
    smoke = load_run_config(CONFIGS / "smoke_cpu.yaml", [])
    with pytest.raises(PlanError, match="these pools run on CPU: rollout, teacher, learner"):
        pool_costs(smoke, "h100", median_tokens=None, tail=10, prompt_tokens=None, assume=None)
    config = round_config(Path("/nowhere"), qwen["8B"])
    with pytest.raises(PlanError, match="the size of the student is unknown: no model at '/nowhere'"):
        pool_costs(config, "h100", median_tokens=None, tail=10, prompt_tokens=None, assume=None)
    with pytest.raises(PlanError, match="unknown device 'h900'; expected one of a100, h100, h200, b200"):
        find_device("h900")


def test_shipped_division_of_64_gpus_is_the_fastest() -> None:
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml")
    costs, _ = pool_costs(config, "h200", median_tokens=None, tail=10.0, prompt_tokens=None, assume=None)
    fastest = splits(costs, 64, staleness=0)[0].time.seconds
    shipped = sizes_of(config)
    assert sum(shipped.devices(config).values()) == 64
    assert step_time(costs, shipped, staleness=0).seconds <= 1.005 * fastest
