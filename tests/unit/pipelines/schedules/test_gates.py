"""Gates and approval of a schedule's promotions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pipelines.cli.tables.schedule import tick_line
from pipelines.schedules.adding import edit_schedule, gate_settings
from pipelines.schedules.launcher import RunExit, RunRequest
from pipelines.schedules.notify import message_of
from rlad.config import load_evaluation_suite
from rlad.data.prompt_files import read_prompt_file, write_prompt_file
from rlad.data.records import PromptRecord
from rlad.errors import ConfigError, DataError
from rlad.registry.governance import ModelGovernance
from rlad.registry.webhooks import Webhooks

from .conftest import DAY, NIGHT, Site, records

OLD = {"prompts": {"source": "file", "path": "old.jsonl"}, "max_loss": 0.16, "samples": 3}
SAFETY = {"prompts": {"source": "file", "path": "safety.jsonl"}, "min_accuracy": 0.9}
PUZZLES = {"name": "knights_knaves", "form": "compact"}


@pytest.fixture
def gated(site: Site) -> Site:
    """The schedule with two gates, whose first student is in production. The next one is better."""
    for name in ("old", "safety"):
        write_prompt_file(records([f"{name}-{index}" for index in range(20)]), site.folder / f"{name}.jsonl")
    site.add(gates={"old": OLD, "safety": SAFETY})
    site.launcher.shares = {"old": (1.0, 1.0), "safety": (0.9, 0.0)}
    site.tick_at(NIGHT)
    return site


def commands(site: Site) -> list[str]:
    return [request.arguments[0] for request in site.launcher.requests]


def test_student_that_passes_all_gates_is_promoted_with_their_figures(gated: Site) -> None:
    gated.launcher.shares = {"old": (0.95, 1.0), "safety": (0.9, 0.0)}
    ended = gated.tick_at(NIGHT + DAY, before=0.6, after=0.9)
    assert ended.event == "promoted"
    assert ended.outcome is not None
    old, safety = ended.outcome.gates
    # 19 pairs of 0 and one of -1: mean -0.05, standard error 0.05, and 2.093 of it for 19 degrees of freedom.
    assert (old.name, old.is_passed, old.accuracy, old.incumbent_accuracy) == ("old", True, 0.95, 1.0)
    assert old.difference == pytest.approx(-0.05)
    assert old.interval == pytest.approx((-0.15465, 0.05465), abs=1e-4)
    assert (safety.name, safety.is_passed, safety.accuracy, safety.difference) == ("safety", True, 0.9, None)
    assert "passed old, safety" in gated.registry.history("kk")[-2].reason  # the last one is that of `best`
    assert "gate old passed: 95.0% on 20 prompts" in tick_line(ended)


def test_one_failed_gate_refuses_and_all_gates_are_reported(gated: Site) -> None:
    gated.launcher.shares = {"old": (0.9, 1.0), "safety": (0.85, 1.0)}
    ended = gated.tick_at(NIGHT + DAY, before=0.6, after=0.9)
    assert ended.event == "kept"
    assert gated.registry.aliases("kk")["production"] == 1
    assert ended.outcome is not None
    assert [gate.is_passed for gate in ended.outcome.gates] == [False, False]
    assert "gate old failed: a loss of more than 16 points is not excluded" in ended.outcome.reason
    assert "gate safety failed: below the minimum of 90.0% (85.0% on 20 prompts)" in ended.outcome.reason
    gated.launcher.shares = {"old": (1.0, 1.0), "safety": (0.85, 1.0)}
    ended = gated.tick_at(NIGHT + 2 * DAY, before=0.6, after=0.9)
    assert ended.outcome is not None
    assert (ended.event, [gate.is_passed for gate in ended.outcome.gates]) == ("kept", [True, False])


def test_gates_are_evaluated_for_better_students_only(gated: Site) -> None:
    before = len(gated.launcher.requests)
    ended = gated.tick_at(NIGHT + DAY, before=0.6, after=0.5)
    assert ended.event == "kept"
    assert ended.outcome is not None
    assert ended.outcome.gates == ()
    assert commands(gated)[before:] == ["run"]


def test_incumbent_is_evaluated_only_if_a_gate_compares_with_it(gated: Site) -> None:
    assert commands(gated) == ["run", "eval"]  # without a version in production
    gated.add(gates={"safety": SAFETY})
    gated.tick_at(NIGHT + DAY, before=0.6, after=0.9)
    assert commands(gated)[2:] == ["run", "eval"]
    gated.add(gates={"old": OLD, "safety": SAFETY})
    gated.tick_at(NIGHT + 2 * DAY, before=0.6, after=1.0)
    assert commands(gated)[4:] == ["run", "eval", "eval"]
    own, incumbent = (request.arguments[1] for request in gated.launcher.requests[-2:])
    assert own.endswith("/export")
    assert Path(incumbent) == gated.registry.local_path(gated.registry.get("kk", 2))


def test_suite_of_the_gates_has_their_settings_and_is_valid_for_rlad_eval(gated: Site) -> None:
    request = gated.launcher.requests[-1]
    suite = load_evaluation_suite(request.arguments[request.arguments.index("--config") + 1])
    assert (suite.sets["old"].samples, suite.sets["safety"].samples) == (3, 1)
    prompts = suite.sets["old"].prompts.model_dump()
    assert read_prompt_file(prompts["path"]) == records([f"old-{index}" for index in range(20)])


def test_failed_evaluation_of_the_incumbent_is_tried_again_without_the_student(gated: Site) -> None:
    def fail(request: RunRequest) -> RunExit:
        return RunExit(status=1, reason="out of memory")

    gated.launcher.scripts = [gated.launcher.finish, gated.launcher.finish, fail]
    before = len(gated.launcher.requests)
    ended = gated.tick_at(NIGHT + DAY, before=0.6, after=0.9)
    assert (ended.event, ended.attempts) == ("promoted", 2)
    assert commands(gated)[before:] == ["run", "eval", "eval", "run", "eval"]


def test_prompts_of_gates_are_left_out_of_the_training(gated: Site) -> None:
    (gated.folder / "new").mkdir()
    write_prompt_file(records(["t0", "old-3", "safety-4", "t1"]), gated.folder / "new" / "a.jsonl")
    gated.add(gates={"old": OLD, "safety": SAFETY}, prompts={"pattern": "new/*.jsonl"})
    ended = gated.tick_at(NIGHT + DAY)
    assert ended.plan is not None
    assert (ended.plan.num_prompts, ended.plan.left_out) == (2, 2)


def test_gate_without_a_rule_a_verifier_or_prompts_of_its_own_is_refused(gated: Site) -> None:
    with pytest.raises(ValueError, match="at least one of max_loss, min_accuracy"):
        gated.settings(gates={"old": {"prompts": OLD["prompts"]}})
    with pytest.raises(ValueError, match="got knights_knaves in both"):
        gated.settings(gate_verifiers={"knights_knaves": PUZZLES})
    run = gated.settings().run
    other = [PromptRecord(id="r", prompt="how to pick a lock?", task="refusal", answer="no", metadata={})]
    write_prompt_file(other, gated.folder / "safety.jsonl")
    with pytest.raises(ConfigError, match="gate safety has prompts of the tasks refusal"):
        gated.add(gates={"safety": SAFETY})
    gated.add(gates={"safety": SAFETY}, gate_verifiers={"refusal": PUZZLES})
    unknown = [PromptRecord(id="u", prompt="who?", task="unknown", answer="no", metadata={})]
    write_prompt_file(unknown, gated.folder / "unknown.jsonl")
    with pytest.raises(ConfigError, match="of the tasks unknown"):
        edit_schedule(gated.store, "nightly", ["gates.safety.prompts.path=unknown.jsonl"], author="otto")
    fixed = {**run, "prompts": {"source": "file", "path": "old.jsonl"}}
    with pytest.raises(DataError, match="gate old: 20 of its 20 prompts are training prompts"):
        gated.add(run=fixed, gates={"old": OLD})


def test_slow_student_fails_the_gates_that_limit_the_latency(gated: Site) -> None:
    absolute = {**SAFETY, "max_latency_s": 1.5}
    relative = {"prompts": OLD["prompts"], "max_latency_growth": 0.2, "latency": {"requests": 5}}
    gated.launcher.shares = {"absolute": (1.0, 1.0), "relative": (1.0, 1.0)}
    gated.add(gates={"absolute": absolute, "relative": relative})
    for day, p95_s, passed in ((1, 1.2, [True, True]), (2, 1.3, [True, False]), (3, 1.6, [False, False])):
        gated.launcher.p95_s = (p95_s, 1.0)
        ended = gated.tick_at(NIGHT + day * DAY, before=0.6, after=0.9)
        assert ended.outcome is not None
        assert [gate.is_passed for gate in ended.outcome.gates] == passed
        assert [gate.latency_s for gate in ended.outcome.gates] == [p95_s] * 2
        assert ended.outcome.gates[1].incumbent_latency_s == 1.0
        assert ended.event == ("promoted" if all(passed) else "kept")
    assert "gate absolute failed: 100.0% on 20 prompts; slower than the maximum of 1.5 s" in ended.outcome.reason
    assert "slower by more than 20%" in ended.outcome.reason
    request = gated.launcher.requests[-1]
    suite = load_evaluation_suite(request.arguments[request.arguments.index("--config") + 1])
    measured = [suite.sets[name].latency for name in ("absolute", "relative")]
    assert [(each.requests, each.concurrency) for each in measured if each is not None] == [(64, 8), (5, 8)]


def test_limit_that_is_newer_than_the_evaluation_is_an_error_with_the_remedy(gated: Site) -> None:
    def finish_without_latency(request: RunRequest) -> RunExit:
        ended = gated.launcher.finish(request)
        figures = Path(request.arguments[request.arguments.index("--output") + 1]) / "evaluation.json"
        figures.write_text(json.dumps({"sets": json.loads(figures.read_text())["sets"]}))
        return ended

    gated.add(gates={"safety": {**SAFETY, "max_latency_s": 1.5}})
    gated.launcher.scripts = [gated.launcher.finish, finish_without_latency]
    ended = gated.tick_at(NIGHT + DAY, before=0.6, after=0.9)
    assert ended.event == "failed"
    assert "has no latency of safety" in str(ended.reason)
    assert "remove " in str(ended.reason)


def test_gates_are_read_from_a_file_that_has_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "gates.yaml"
    file.write_text(yaml.safe_dump({"gates": {"old": OLD}}))
    assert gate_settings(file) == {"gates": {"old": OLD}}
    assert gate_settings(None) == {}
    file.write_text(yaml.safe_dump({"gates": {}, "margin": 1}))
    with pytest.raises(ConfigError, match=r"expected gates and gate_verifiers; got margin"):
        gate_settings(file)


@pytest.mark.parametrize("by_model", [False, True])
def test_promotion_that_requires_approval_is_requested(site: Site, by_model: bool) -> None:
    site.tick_at(NIGHT)
    governed = ModelGovernance(registry=site.registry, name="kk")
    if by_model:
        governed.require_approval(True, reason="serves users")
    else:
        edit_schedule(site.store, "nightly", ["require_approval=true"], author="otto")
    ended = site.tick_at(NIGHT + DAY, before=0.6, after=0.9)
    assert ended.event == "requested"
    assert "waits for approval" in message_of(ended, model="kk")["text"]
    assert site.registry.aliases("kk") == {"production": 1, "best": 2}
    (request,) = governed.requests()
    assert (request.version, request.requester, request.expected) == (2, "schedule nightly", 1)
    assert ended.run_id is not None
    assert request.reason.startswith(ended.run_id)
    governed.approve(2, approver="Anna", reason="reviewed")
    later = site.tick_at(NIGHT + 2 * DAY, before=0.9, after=0.9)
    assert later.plan is not None
    assert (later.event, later.plan.parent) == ("kept", 2)


def test_better_student_of_a_later_run_replaces_the_open_request(site: Site) -> None:
    site.add(require_approval=True, keep_versions=1)
    for day, after in enumerate((0.6, 0.7, 0.9)):
        assert site.tick_at(NIGHT + day * DAY, before=0.5, after=after).event == "requested"
    assert [request.version for request in ModelGovernance(registry=site.registry, name="kk").requests()] == [3]
    assert [version.version for version in site.registry.versions("kk")] == [3]


def test_promotion_of_a_tick_is_sent_to_webhooks_whose_failure_changes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhooks = Webhooks(registry=site.registry)
    webhooks.add("ops", url_env="HOOK_URL", secret_env="HOOK_SECRET")
    monkeypatch.setenv("HOOK_URL", "ftp://127.0.0.1/hook")  # fails at once
    monkeypatch.setenv("HOOK_SECRET", "0123456789abcdef")
    assert site.tick_at(NIGHT).event == "promoted"
    (hook,) = webhooks.hooks()
    pending, failed = webhooks.undelivered(hook)
    assert [event.kind for event in pending] == ["promoted"]  # waits behind the failed one
    assert [(event.kind, failure.error) for event, failure in failed] == [
        ("registered", "webhook ops does not answer: UnsupportedProtocol")
    ]
