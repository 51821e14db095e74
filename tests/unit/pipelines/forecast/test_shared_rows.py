"""Forecast of a learner whose ranks share rows (`learner.sequence_parallel`), with shapes of the built-in table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.forecast.assumptions import Assumptions, Work
from pipelines.forecast.costs import Machine, exchanged_bytes
from pipelines.forecast.devices import find_device
from pipelines.forecast.pools import Learning, PoolCosts
from pipelines.forecast.sizes import splits
from pipelines.planning.model_shape import ModelShape
from rlad.config import load_run_config

CONFIGS = Path(__file__).parents[4] / "configs"
# 28 layers with 2048 query entries, and 1024 keys and as many values, of a token.
QWEN_0_6B_VALUES = 28 * (2 * 2048 + 2 * 1024)


def test_ranks_send_what_the_others_need_in_each_pass() -> None:
    shape = ModelShape(
        parameters=0, hidden=0, layers=10, vocabulary=0, attention_width=1000, kv_values_per_token=10_000, max_tokens=0
    )
    # 100 tokens: 2 * 10 layers * 1000 queries and results, 10,000 keys and values, 2 bytes, 3/4 of it to other ranks,
    # forward and backward, and forward again with checkpointing.
    assert exchanged_bytes(shape, 100, 4, checkpointing=False) == 100 * 30_000 * 2 * 0.75 * 2
    assert exchanged_bytes(shape, 100, 4, checkpointing=True) == 100 * 30_000 * 2 * 0.75 * 3
    assert exchanged_bytes(shape, 100, 1, checkpointing=True) == 0


def test_exchange_takes_time_and_rows_of_all_their_ranks_are_the_last_part() -> None:
    def learning(sequence_parallel: int) -> Learning:
        overrides = [f"learner.sequence_parallel={sequence_parallel}", "learner.micro_batch_tokens=600"]
        config = load_run_config(CONFIGS / "qwen3_0.6b_kk_2k.yaml", [*overrides, "training.prompts_per_step=4"])
        machine = Machine(device=find_device("h100"), assumptions=Assumptions())
        work = Work(groups=4, prompt_tokens=50, lengths=np.full(32, 100.0))
        return PoolCosts(config, machine, work).learning(2)

    alone, shared = learning(1), learning(2)
    # 32 sequences of 150 tokens, half of them in each rank's slices, of which half leave the rank, in three passes.
    exchange_s = 2400 * QWEN_0_6B_VALUES * 2 / 2 * 3 / (450e9 * Assumptions().link_share)
    assert shared.seconds - alone.seconds == pytest.approx(exchange_s)
    assert alone.last_part_s == pytest.approx(alone.seconds * 1200 / 4800)
    assert shared.last_part_s == pytest.approx(shared.seconds * 600 / 4800)


def test_advice_adds_and_removes_whole_sequence_groups() -> None:
    config = load_run_config(CONFIGS / "qwen3_8b_math_30k.yaml")
    machine = Machine(device=find_device("h200"), assumptions=Assumptions())
    costs = PoolCosts(config, machine, Work(groups=32, prompt_tokens=256, lengths=np.full(256, 4000.0)))
    assert {split.sizes.learner for split in splits(costs, 16, staleness=0)} == {4, 8, 12}
