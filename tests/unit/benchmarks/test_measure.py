"""Tests of paired measurements and of the files that they are written to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.measure import Paired, Ratio, Result, measure_pairs, show
from benchmarks.workload import long_tailed_lengths


def test_ratio_is_the_median_of_the_ratios_of_the_pairs() -> None:
    """The machine was slow during the second pair. The ratio of the medians, 30 / 10, would show a difference."""
    paired = Paired(first_s=(20.0, 300.0, 30.0), second_s=(10.0, 150.0, 10.0))
    assert paired.ratios == [2.0, 2.0, 3.0]
    assert paired.ratio == 2.0
    assert (paired.first_median_s, paired.second_median_s) == (30.0, 10.0)


def test_ratio_of_an_even_number_of_pairs_is_the_mean_of_the_middle_two() -> None:
    assert Paired(first_s=(1.0, 2.0, 3.0, 10.0), second_s=(1.0, 1.0, 1.0, 1.0)).ratio == 2.5


def test_runs_alternate_and_warm_ups_are_not_counted() -> None:
    order: list[str] = []
    pairs_done: list[int] = []

    def timed(name: str) -> float:
        order.append(name)
        return float(len(order))

    paired = measure_pairs(
        lambda: timed("a"), lambda: timed("b"), pairs=2, warm_ups=1, on_pair=lambda: pairs_done.append(len(order))
    )
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert (paired.first_s, paired.second_s) == ((3.0, 6.0), (4.0, 5.0))
    assert pairs_done == [4, 6]


@pytest.mark.parametrize(
    ("value", "target", "side", "is_met"),
    [
        (0.05, 0.05, "at most", True),
        (0.06, 0.05, "at most", False),
        (1.5, 1.5, "at least", True),
        (1.4, 1.5, "at least", False),
        (1.4, None, "at most", None),
    ],
)
def test_target_is_an_inclusive_bound(value: float, target: float | None, side: str, is_met: bool | None) -> None:
    assert Ratio(name="r", value=value, target=target, side=side, means="").is_met is is_met  # type: ignore[arg-type]


def test_result_file_begins_with_the_ratios_and_holds_the_provenance(tmp_path: Path) -> None:
    result = Result(
        benchmark="learner",
        ratios=[
            Ratio(name="share", value=0.25, target=0.5, means="of all"),
            Ratio(name="shown", value=2.0, means="only shown"),
        ],
        figures={"update_s": 1.5},
        settings={"responses": 64},
    )
    path = tmp_path / "folder" / "out.json"
    show(result, path, Console(quiet=True))
    written = json.loads(path.read_text())
    assert list(written)[:3] == ["share", "shown", "targets"]
    assert (written["share"], written["shown"]) == (0.25, 2.0)
    assert written["targets"] == {"share": {"at_most": 0.5, "is_met": True}}
    assert (written["figures"], written["settings"]) == ({"update_s": 1.5}, {"responses": 64})
    assert written["provenance"]["cpu_cores"] >= 1
    assert "torch" in written["provenance"]["packages"]


def test_99th_percentile_of_long_tailed_lengths_is_ten_times_the_median() -> None:
    lengths = sorted(long_tailed_lengths(1000, median=100))
    assert (lengths[499] + lengths[500]) / 2 == pytest.approx(100, rel=0.01)
    assert lengths[989] == pytest.approx(1000, rel=0.05)
    assert long_tailed_lengths(8, median=100) == long_tailed_lengths(8, median=100)
