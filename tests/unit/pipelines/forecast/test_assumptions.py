"""Assumptions of a forecast, and the table of devices."""

from __future__ import annotations

import pytest

from pipelines.forecast.assumptions import Assumptions, assumed_lengths, assumptions_from
from pipelines.forecast.devices import DEVICES, find_device
from rlad.config import RolloutConfig
from rlad.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("training_shar=0.3", "unknown assumption 'training_shar'; expected NAME=VALUE with one of memory_share"),
        ("training_share=fast", "must be a number; got 'fast'"),
        ("training_share=1.5", "out of range; got 1.5. Shares are above 0 and at most 1"),
        ("network_gbit=0", "out of range; got 0"),
        ("engine_ms=nan", "out of range; got nan"),
    ],
)
def test_invalid_assumption_is_refused(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assumptions_from([given])


def test_assumptions_can_be_overridden() -> None:
    assert assumptions_from(["training_share=0.3", "engine_ms=0"]) == Assumptions(training_share=0.3, engine_ms=0)


def test_lengths_above_the_maximum_are_refused() -> None:
    rollout = RolloutConfig(max_response_tokens=1000)
    assert assumed_lengths(rollout, median=None, tail=4).median == 250
    with pytest.raises(ConfigError, match=r"from 1 to rollout.max_response_tokens \(1000\); got 1001"):
        assumed_lengths(rollout, median=1001, tail=4)
    with pytest.raises(ConfigError, match=r"at least 1; got 0\.5"):
        assumed_lengths(rollout, median=100, tail=0.5)


def test_devices_name_their_source_and_are_ordered_by_speed() -> None:
    known = list(DEVICES.values())
    assert all(device.source.startswith("NVIDIA") and "data sheet" in device.source for device in known)
    assert [device.memory_bytes_s for device in known] == sorted(device.memory_bytes_s for device in known)
    assert find_device("H100").bf16_flops == pytest.approx(1979e12 / 2)
