"""Promotion decisions of a tick: which version the student is compared with, and which aliases move."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.schedules.launcher import RunExit, RunRequest

from .conftest import DAY, NIGHT, Site


def test_first_student_is_promoted_and_second_run_starts_from_it(site: Site) -> None:
    first = site.tick_at(NIGHT)
    second = site.tick_at(NIGHT + DAY, before=0.6, after=0.9)
    assert first.plan is not None
    assert (first.plan.student, first.plan.parent) == ("start", None)
    assert second.plan is not None
    assert second.plan.parent == 1
    assert Path(second.plan.student) == site.registry.local_path(site.registry.get("kk", 1))
    assert second.outcome is not None
    assert (second.event, second.outcome.incumbent, second.outcome.incumbent_source) == (
        "promoted",
        1,
        "the run's start",
    )
    assert second.outcome.difference == pytest.approx(0.3)
    assert site.registry.aliases("kk") == {"production": 2, "best": 2}
    assert site.registry.get("kk", 2).lineage.parent == "kk@1"


def test_worse_student_is_kept_but_not_promoted(site: Site) -> None:
    site.tick_at(NIGHT, after=0.6)
    worse = site.tick_at(NIGHT + DAY, before=0.6, after=0.2)
    assert worse.event == "kept"
    assert worse.outcome is not None
    assert worse.outcome.difference == pytest.approx(-0.4)
    assert site.registry.aliases("kk") == {"production": 1, "best": 1}
    assert [version.version for version in site.registry.versions("kk")] == [1, 2]
    third = site.tick_at(NIGHT + 2 * DAY, before=0.6, after=0.6)
    assert third.plan is not None
    assert third.plan.parent == 1


def test_improvement_below_the_margin_is_not_promoted(site: Site) -> None:
    site.add(margin=0.35)
    site.tick_at(NIGHT, after=0.5)
    assert site.tick_at(NIGHT + DAY, before=0.5, after=0.8).event == "kept"
    assert site.tick_at(NIGHT + 2 * DAY, before=0.5, after=0.9).event == "promoted"


def test_insignificant_improvement_is_not_promoted_but_becomes_best(site: Site) -> None:
    site.tick_at(NIGHT, after=0.5)
    close = site.tick_at(NIGHT + DAY, before=0.5, after=0.55)
    assert close.event == "kept"
    assert close.outcome is not None
    assert "not significantly" in close.outcome.reason
    assert site.registry.aliases("kk") == {"production": 1, "best": 2}


def test_fixed_start_uses_the_evaluation_of_the_incumbents_own_run(site: Site) -> None:
    site.add(start_from=None)
    site.tick_at(NIGHT, before=0.5, after=0.9)
    second = site.tick_at(NIGHT + DAY, before=0.1, after=0.7)
    assert second.plan is not None
    assert (second.plan.student, second.plan.parent) == ("start", None)
    assert second.outcome is not None
    assert second.outcome.incumbent_source == "its own run"
    assert second.outcome.difference == pytest.approx(-0.2)
    assert [request.arguments[0] for request in site.launcher.requests] == ["run", "run"]


def test_incumbent_with_another_evaluation_is_evaluated_again(site: Site) -> None:
    site.add(start_from=None)
    site.tick_at(NIGHT, after=0.9)
    run = {**site.settings().run, "evaluation": {**site.settings().run["evaluation"], "samples": 2}}
    site.add(start_from=None, run=run, address="ray-head:6379")
    second = site.tick_at(NIGHT + DAY, before=0.1, after=0.7)
    assert second.outcome is not None
    assert second.outcome.incumbent_source == "evaluated now"
    assert second.outcome.difference == pytest.approx(0.0)
    evaluated = site.launcher.requests[-1].arguments
    assert evaluated[:2] == ("eval", str(site.registry.local_path(site.registry.get("kk", 1))))
    assert evaluated[-1] == "cluster.address=ray-head:6379"


def test_retention_keeps_versions_with_an_alias(site: Site) -> None:
    site.add(keep_versions=1)
    for day, (before, after) in enumerate(((0.5, 0.9), (0.9, 0.3), (0.9, 0.2))):
        ended = site.tick_at(NIGHT + day * DAY, before=before, after=after)
    assert ended.outcome is not None
    assert ended.outcome.given_up == (2,)
    assert [version.version for version in site.registry.versions("kk")] == [1, 3]


def test_student_is_compared_with_a_manually_promoted_version(site: Site) -> None:
    site.tick_at(NIGHT, after=0.5)
    site.tick_at(NIGHT + DAY, before=0.5, after=0.55)
    promote, promoted = site.registry.promote, list[int]()

    def promote_manually(request: RunRequest) -> RunExit:
        promote("kk", 2, expected=1, reason="by hand")
        promoted.append(2)
        return site.launcher.finish(request)

    site.launcher.scripts = [promote_manually]
    third = site.tick_at(NIGHT + 2 * DAY, before=0.5, after=0.9)
    assert promoted
    assert third.plan is not None
    assert third.outcome is not None
    assert (third.plan.parent, third.outcome.incumbent, third.outcome.incumbent_source) == (1, 2, "its own run")
    assert third.outcome.difference == pytest.approx(0.35)
    assert site.registry.aliases("kk")["production"] == 3
