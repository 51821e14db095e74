"""A slow, hanging or failing tracker costs figures, which are counted, and neither time nor the run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

import pytest

from pipelines.monitoring.trackers.delivery import TrackerDelivery
from pipelines.monitoring.trackers.opening import Trackers, require_trackers
from rlad.config.monitoring.trackers import TensorBoardTracker, WandbTracker
from rlad.errors import PlanError

PATIENCE_S = 60.0


class Recorded:
    """Tracker that remembers its figures, and waits in each call until it may go on."""

    def __init__(self, *, fails_at: frozenset[int] = frozenset(), is_free: bool = True) -> None:
        self.steps: list[int] = []
        self.is_closed = False
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()
        self._fails_at = fails_at
        if is_free:
            self.may_go_on.set()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.has_begun.set()
        assert self.may_go_on.wait(PATIENCE_S)
        if step in self._fails_at:
            raise ValueError(f"no step {step}")
        self.steps.append(step)

    def close(self) -> None:
        self.is_closed = True


def close(*deliveries: TrackerDelivery) -> None:
    Trackers(deliveries).close()


def test_figures_arrive_in_order_before_the_tracker_is_closed() -> None:
    tracker = Recorded()
    delivery = TrackerDelivery("slow", tracker)
    for step in range(100):
        delivery.log(step, {"reward/mean": 0.5})
    close(delivery)
    assert tracker.steps == list(range(100))
    assert tracker.is_closed
    assert delivery.counts.delivered == 100


def test_full_queue_drops_figures_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Recorded(is_free=False)
    delivery = TrackerDelivery("slow", tracker, max_queued=3)
    delivery.log(0, {})
    assert tracker.has_begun.wait(PATIENCE_S)
    for step in range(1, 6):  # the queue holds three of them
        delivery.log(step, {})
    assert (delivery.counts.dropped, delivery.counts.unsent) == (2, 3)
    tracker.may_go_on.set()
    close(delivery)
    assert tracker.steps == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        "tracker=slow state=behind queued=3 (logged once)",
        "tracker=slow state=incomplete delivered=4 dropped=2 failed=0 unsent=0",
    ]


def test_error_is_logged_once_and_later_figures_are_delivered(caplog: pytest.LogCaptureFixture) -> None:
    tracker, other = Recorded(fails_at=frozenset({1, 2})), Recorded()
    trackers = Trackers([TrackerDelivery("failing", tracker), TrackerDelivery("other", other)])
    for step in range(4):
        trackers.log(step, {})
    trackers.close()
    assert (tracker.steps, other.steps) == ([0, 3], [0, 1, 2, 3])
    assert trackers.counts["failing"].failed == 2
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert messages == [
        "tracker=failing state=failing step=1 reason=no step 1 (logged once)",
        "tracker=failing state=incomplete delivered=2 dropped=0 failed=2 unsent=0",
    ]


def test_hanging_tracker_does_not_keep_the_run_from_its_end() -> None:
    tracker = Recorded(is_free=False)
    delivery = TrackerDelivery("hanging", tracker)
    delivery.log(1, {})
    delivery.log(2, {})
    assert tracker.has_begun.wait(PATIENCE_S)
    delivery.begin_close()
    delivery.finish_close(time.monotonic())
    assert delivery.counts.unsent == 1
    tracker.may_go_on.set()


def test_missing_library_is_refused_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    require_trackers([TensorBoardTracker()])
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    with pytest.raises(PlanError, match="`pip install wandb`, or remove wandb from tracking"):
        require_trackers([WandbTracker(name="wandb")])
