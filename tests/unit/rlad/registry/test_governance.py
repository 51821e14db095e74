"""Tags and descriptions of versions, and promotions that another person approves."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlad.errors import (
    AliasConflictError,
    ApprovalRequiredError,
    ConfigError,
    ModelNotFoundError,
    RegistryError,
    SelfApprovalError,
)
from rlad.registry.changes import AliasChange, ApprovalRule, PromotionRefusal, PromotionRequest, Retirement
from rlad.registry.governance import ModelGovernance
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import ModelVersion

NAME = "kk-student"


@pytest.fixture
def three(local: ModelRegistry, model: Path, add: Callable[..., ModelVersion]) -> ModelRegistry:
    """A registry with versions 1 to 3, of which 1 is in production."""
    for key in ("a", "b", "c"):
        add(local, key, model)
    local.promote(NAME, 1, expected=None, reason="the first")
    return local


@pytest.fixture
def governed(three: ModelRegistry) -> ModelGovernance:
    return ModelGovernance(registry=three, name=NAME)


@pytest.fixture
def guarded(governed: ModelGovernance) -> ModelGovernance:
    governed.require_approval(True, reason="serves users")
    return governed


def request(governed: ModelGovernance, version: int = 2, *, requester: str = "schedule nightly") -> None:
    governed.request(version, expected=1, reason="better", requester=requester)


def test_tags_are_merged_and_removed_and_the_description_is_replaced(governed: ModelGovernance) -> None:
    governed.annotate(2, tags={"quality": "gold", "team/owner": "math"}, description="first try")
    governed.annotate(2, tags={"quality": "silver"}, remove=["team/owner", "never-set"])
    governed.annotate(2, description="second try")
    governed.annotate(3, description="other")
    notes = ModelGovernance(registry=ModelRegistry.open(governed.registry.uri), name=NAME).notes()
    assert (notes[2].tags, notes[2].description) == ({"quality": "silver"}, "second try")
    assert (notes[3].tags, notes[3].description) == ({}, "other")
    assert 1 not in notes


def test_every_note_stays_in_the_history_and_an_equal_one_adds_nothing(governed: ModelGovernance) -> None:
    for quality in ("gold", "gold", "silver"):
        governed.annotate(2, tags={"quality": quality})
    assert [getattr(change, "tags", None) for change in governed.changes()] == [
        None,
        {"quality": "gold"},
        {"quality": "silver"},
    ]


def test_other_changes_keep_the_notes_and_retirement_drops_them(three: ModelRegistry) -> None:
    governed = ModelGovernance(registry=three, name=NAME)
    for version in (1, 2, 3):
        governed.annotate(version, tags={"number": str(version)})
    three.promote(NAME, 3, expected=1, reason="better")
    three.set_alias(NAME, "production", 3, expected=3, reason="again")
    three.promote(NAME, 1, expected=3, reason="back")
    assert three.retain(NAME, 1) == [2]
    assert {version: notes.tags["number"] for version, notes in governed.notes().items()} == {1: "1", 3: "3"}
    with pytest.raises(ModelNotFoundError, match="was retired"):
        governed.annotate(2, tags={"number": "2"})


@pytest.mark.parametrize(
    "tags", [{"": "x"}, {"-a": "x"}, {"a b": "x"}, {"k" * 64: "x"}, {"a": "x\ny"}, {"a": "x" * 201}]
)
def test_invalid_tags_are_refused(governed: ModelGovernance, tags: dict[str, str]) -> None:
    with pytest.raises(RegistryError, match="invalid tag"):
        governed.annotate(2, tags=tags)
    assert governed.notes() == {}


def test_notes_are_bounded_and_hold_no_secrets(governed: ModelGovernance) -> None:
    governed.annotate(2, tags={f"k{index}": "" for index in range(50)}, description="x" * 4000)
    with pytest.raises(RegistryError, match="would have 51 tags"):
        governed.annotate(2, tags={"one-more": ""})
    with pytest.raises(RegistryError, match="at most 4000 characters; got 4001"):
        governed.annotate(2, description="x" * 4001)
    with pytest.raises(ConfigError, match="must not hold secrets"):
        governed.annotate(3, description="see https://user:hunter2hunter2@models.example")


def test_concurrent_writers_lose_no_tag(local: ModelRegistry, model: Path, add: Callable[..., ModelVersion]) -> None:
    add(local, "a", model)

    def write(number: int) -> None:
        own = ModelGovernance(registry=ModelRegistry.open(local.uri), name=NAME)
        for turn in range(5):
            own.annotate(1, tags={f"writer-{number}/{turn}": "x"})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    tags = ModelGovernance(registry=local, name=NAME).notes()[1].tags
    assert sorted(tags) == sorted(f"writer-{number}/{turn}" for number in range(4) for turn in range(5))


def test_notes_and_approvals_on_every_store(
    registry: ModelRegistry, model: Path, add: Callable[..., ModelVersion]
) -> None:
    add(registry, "a", model)
    governed = ModelGovernance(registry=registry, name=NAME)
    governed.annotate(1, tags={"quality": "gold"})
    governed.require_approval(True, reason="serves users")
    governed.request(1, expected=None, reason="the first", requester="schedule nightly")
    governed.approve(1, approver="Anna", reason="reviewed")
    assert (registry.aliases(NAME), governed.notes()[1].tags) == ({"production": 1}, {"quality": "gold"})


def test_guarded_model_is_promoted_only_by_an_approval(guarded: ModelGovernance) -> None:
    with pytest.raises(ApprovalRequiredError, match="requires approval"):
        guarded.registry.promote(NAME, 2, expected=1, reason="better")
    guarded.registry.set_alias(NAME, "best", 2, expected=None, reason="other aliases move freely")
    request(guarded)
    assert guarded.registry.aliases(NAME)["production"] == 1
    guarded.approve(2, approver="Anna", reason="reviewed")
    assert guarded.registry.aliases(NAME)["production"] == 2
    assert guarded.requests() == ()
    moved = guarded.registry.history(NAME)[-1]
    assert (moved.previous, moved.version, moved.requested_by, moved.approved_by, moved.reason) == (
        1,
        2,
        "schedule nightly",
        "Anna",
        "reviewed",
    )
    assert [type(change) for change in guarded.changes()][-3:] == [AliasChange, PromotionRequest, AliasChange]


@pytest.mark.parametrize("approver", ["Otto", "otto", "  OTTO "])
def test_requester_cannot_approve(guarded: ModelGovernance, approver: str) -> None:
    request(guarded, requester="Otto")
    with pytest.raises(SelfApprovalError, match="another person"):
        guarded.approve(2, approver=approver, reason="mine")
    assert guarded.registry.aliases(NAME)["production"] == 1
    guarded.approve(2, approver="Anna", reason="reviewed")


@pytest.mark.parametrize("name", ["", " ", "a\x07b", "x" * 101, "schedule nightly", "Schedule other", "schedule"])
def test_approver_is_a_person(guarded: ModelGovernance, name: str) -> None:
    request(guarded)
    with pytest.raises(RegistryError, match=r"expected a name|a schedule cannot"):
        guarded.approve(2, approver=name, reason="reviewed")
    assert len(guarded.requests()) == 1


def test_approval_needs_an_open_request_for_the_version(guarded: ModelGovernance) -> None:
    request(guarded)
    with pytest.raises(RegistryError, match=r"no open request .*@3.*open requests: kk-student@2 by schedule nightly"):
        guarded.approve(3, approver="Anna", reason="reviewed")


def test_refusal_closes_the_request_and_requesters_may_withdraw(guarded: ModelGovernance) -> None:
    request(guarded)
    request(guarded, 3, requester="Otto")
    guarded.refuse(2, by="Anna", reason="unsafe answers")
    guarded.refuse(3, by="Otto", reason="withdrawn")
    assert guarded.requests() == ()
    refusal = guarded.changes()[-2]
    assert isinstance(refusal, PromotionRefusal)
    assert (refusal.version, refusal.refused_by, refusal.reason) == (2, "Anna", "unsafe answers")
    with pytest.raises(RegistryError, match="no open request"):
        guarded.approve(2, approver="Anna", reason="changed my mind")


def test_request_is_made_once_and_a_newer_one_of_the_requester_replaces_it(guarded: ModelGovernance) -> None:
    request(guarded)
    request(guarded)
    request(guarded, 2, requester="Otto")
    request(guarded, 3)
    assert [(each.version, each.requester) for each in guarded.requests()] == [(2, "Otto"), (3, "schedule nightly")]
    assert sum(isinstance(change, PromotionRequest) for change in guarded.changes()) == 3


def test_request_of_a_version_by_two_is_approved_by_either_one_of_them(guarded: ModelGovernance) -> None:
    request(guarded)
    request(guarded, requester="Otto")
    guarded.approve(2, approver="Otto", reason="the schedule asks, too")
    assert guarded.registry.history(NAME)[-1].requested_by == "schedule nightly"


def test_move_of_production_closes_requests_that_compared_with_it(guarded: ModelGovernance) -> None:
    request(guarded, 3, requester="Otto")
    request(guarded)
    guarded.approve(2, approver="Anna", reason="reviewed")
    with pytest.raises(RegistryError, match="no open request"):
        guarded.approve(3, approver="Anna", reason="reviewed")
    with pytest.raises(AliasConflictError, match="it is at 2"):
        request(guarded, 3)
    with pytest.raises(RegistryError, match="already"):
        guarded.request(2, expected=2, reason="better", requester="Otto")
    guarded.request(3, expected=2, reason="better", requester="Otto")
    assert guarded.registry.rollback(NAME, reason="slow") == 1  # needs no approval
    assert guarded.requests() == ()


def test_requested_version_is_not_retired(guarded: ModelGovernance) -> None:
    request(guarded)
    assert guarded.registry.retain(NAME, 1) == []
    guarded.refuse(2, by="Anna", reason="unsafe answers")
    assert guarded.registry.retain(NAME, 1) == [2]
    retirement = guarded.changes()[-1]
    assert isinstance(retirement, Retirement)
    with pytest.raises(ModelNotFoundError, match="was retired"):
        request(guarded)


def test_rule_is_lifted_again_and_the_history_tells(guarded: ModelGovernance) -> None:
    guarded.require_approval(True, reason="once more")  # adds nothing
    guarded.require_approval(False, reason="internal use only")
    guarded.registry.promote(NAME, 2, expected=1, reason="better")
    rules = [(rule.is_required, rule.reason) for rule in guarded.changes() if isinstance(rule, ApprovalRule)]
    assert rules == [(True, "serves users"), (False, "internal use only")]
    with pytest.raises(ModelNotFoundError, match="no model"):
        ModelGovernance(registry=guarded.registry, name="unknown").require_approval(True, reason="x")


def test_one_of_an_approval_and_a_refusal_at_the_same_time_wins(
    local: ModelRegistry, model: Path, add: Callable[..., ModelVersion]
) -> None:
    for key in ("a", "b"):
        add(local, key, model)
    local.promote(NAME, 1, expected=None, reason="the first")

    def act(action: str) -> bool:
        own = ModelGovernance(registry=ModelRegistry.open(local.uri), name=NAME)
        try:
            if action == "approve":
                own.approve(2, approver="Anna", reason="reviewed")
            else:
                own.refuse(2, by="Berta", reason="unsafe answers")
        except RegistryError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        for _ in range(10):
            ModelGovernance(registry=local, name=NAME).request(2, expected=1, reason="better", requester="Otto")
            approved, refused = threads.map(act, ("approve", "refuse"))
            assert approved != refused
            assert local.aliases(NAME)["production"] == (2 if approved else 1)
            if approved:
                local.rollback(NAME, reason="again")


def test_change_log_of_an_earlier_version_stays_readable(
    local: ModelRegistry, model: Path, add: Callable[..., ModelVersion]
) -> None:
    add(local, "a", model)
    add(local, "b", model)
    change = {"sequence": 1, "kind": "set", "alias": "production", "previous": None, "version": 1}
    entry = {
        "entry_id": "0" * 32,
        "change": {**change, "reason": "by hand", "by": "user@host", "at": "2026-01-31T02:00:00.000+00:00"},
        "state": {"sequence": 1, "aliases": {"production": 1}, "retired": []},
    }
    assert local.store.create(f"{NAME}/changes/000001.json", json.dumps(entry).encode())
    governed = ModelGovernance(registry=local, name=NAME)
    assert (governed.notes(), governed.requests(), governed.is_approval_required) == ({}, (), False)
    governed.annotate(2, tags={"quality": "gold"})
    local.promote(NAME, 2, expected=1, reason="better")
    assert local.rollback(NAME, reason="slow") == 1
    assert governed.notes()[2].tags == {"quality": "gold"}
