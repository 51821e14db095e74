"""Sign-in, roles, CSRF tokens and headers of the console."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pipelines.console.app import create_app
from pipelines.console.sessions import Sessions
from pipelines.console.settings import ConsoleSettings, require_usable
from pipelines.console.users import Role, Users, read_users
from rlad.errors import AccessError, ConfigError
from tests.console_stand_in import MODEL, TOKENS, RecordedRequests, users

from .conftest import ORIGIN, csrf_of, sign_in

Visit = Callable[..., TestClient]
PAGES = [
    "/",
    "/compare?run=smoke&run=kk-distill",
    "/runs/kk-distill",
    "/runs/kk-distill/samples",
    "/runs/kk-distill/timeline",
    "/runs/broken",
    "/schedules",
    "/schedules/nightly",
    "/registry",
    f"/registry/{MODEL}",
    f"/registry/{MODEL}/2",
    f"/registry/{MODEL}/diff?a=1&b=3",
]
ACTIONS = [
    ("/runs/kk-distill/stop", {}, Role.OPERATE),
    ("/runs/kk-distill/scale", {"pool": "rollout", "workers": "3"}, Role.OPERATE),
    (f"/registry/{MODEL}/1/roll-back", {"reason": "slow"}, Role.OPERATE),
    (f"/registry/{MODEL}/2/promote", {"reason": "better", "expected": "1"}, Role.OPERATE),
    (f"/registry/{MODEL}/2/approve", {"reason": "reviewed", "expected": ""}, Role.APPROVE),
]


@pytest.mark.parametrize("page", PAGES)
def test_pages_require_a_session_and_show_to_viewers_no_action(visit: Visit, page: str) -> None:
    anonymous = visit().get(page)
    assert anonymous.status_code == 303
    assert anonymous.headers["location"].startswith("/sign-in?next=/")
    shown = visit("vera").get(page)
    assert shown.status_code == 200
    forms = re.findall(r'<form method="post" action="([^"]+)"', shown.text)
    assert forms == ["/sign-out"]


@pytest.mark.parametrize(("path", "fields", "role"), ACTIONS)
def test_actions_are_refused_without_the_role(
    visit: Visit, settings: ConsoleSettings, path: str, fields: dict[str, str], role: Role
) -> None:
    for name, has in (("vera", Role.VIEW), ("otto", Role.OPERATE)):
        if has >= role:
            continue
        client = visit(name)
        answer = client.post(path, data={**fields, "csrf": csrf_of(client.get("/").text)})
        assert answer.status_code == 403
        assert f"requires the role {role.label}" in answer.text
    assert isinstance(settings.live, RecordedRequests)
    assert settings.live.requests == []


@pytest.mark.parametrize(("path", "fields", "role"), ACTIONS)
def test_actions_are_refused_without_session_or_csrf_token(
    visit: Visit, settings: ConsoleSettings, path: str, fields: dict[str, str], role: Role
) -> None:
    assert visit().post(path, data=fields).headers["location"].startswith("/sign-in")
    client, other = visit("anna"), visit("anna")
    foreign = csrf_of(other.get("/").text)
    for csrf in ({}, {"csrf": ""}, {"csrf": "wrong"}, {"csrf": foreign}):
        assert client.post(path, data={**fields, **csrf}).status_code == 403
    own = {**fields, "csrf": csrf_of(client.get("/").text)}
    assert client.post(path, data=own, headers={"origin": "https://elsewhere.example"}).status_code == 403
    assert client.post(path, data=own, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert isinstance(settings.live, RecordedRequests)
    assert settings.live.requests == []


def test_session_cookie_is_hidden_from_scripts_and_other_sites(visit: Visit, settings: ConsoleSettings) -> None:
    cookie = sign_in(visit(), TOKENS["vera"]).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    encrypted = TestClient(create_app(replace(settings, is_encrypted=True)), base_url="https://127.0.0.1")
    with encrypted:
        page = encrypted.get("/sign-in")
        assert "Secure" in page.headers["set-cookie"]


def test_wrong_token_is_refused_and_recorded(visit: Visit, settings: ConsoleSettings) -> None:
    answer = sign_in(visit(), "wrong-token-0123456789abcdef")
    assert answer.status_code == 401
    entry = json.loads(settings.audit.read_text().splitlines()[-1])
    assert (entry["action"], entry["outcome"], entry["error"]) == ("sign in", "refused", "NotSignedInError")
    assert "wrong-token" not in settings.audit.read_text()


def test_sign_in_form_of_another_browser_is_refused(visit: Visit) -> None:
    csrf = csrf_of(visit().get("/sign-in").text)
    assert visit().post("/sign-in", data={"token": TOKENS["anna"], "csrf": csrf}).status_code == 403


def test_address_waits_after_ten_failed_sign_ins_and_others_do_not() -> None:
    now = [0.0]
    sessions = Sessions(users(), clock=lambda: now[0])
    for _ in range(10):
        with pytest.raises(AccessError, match="no user"):
            sessions.sign_in("wrong", client="a")
    with pytest.raises(AccessError, match="wait a minute"):
        sessions.sign_in(TOKENS["vera"], client="a")
    assert sessions.sign_in(TOKENS["vera"], client="b")[1].user.name == "vera"
    now[0] = 60.0
    assert sessions.sign_in(TOKENS["vera"], client="a")[1].user.name == "vera"


def test_session_ends_after_twelve_hours_and_at_sign_out(visit: Visit) -> None:
    now = [0.0]
    sessions = Sessions(users(), clock=lambda: now[0])
    identifier, _ = sessions.sign_in(TOKENS["vera"], client="a")
    now[0] = 12 * 3600 - 1
    assert sessions.get(identifier) is not None
    now[0] = 12 * 3600
    assert sessions.get(identifier) is None
    client = visit("vera")
    kept = client.cookies["rlad_console"]
    client.post("/sign-out", data={"csrf": csrf_of(client.get("/").text)})
    client.cookies.set("rlad_console", kept)
    assert client.get("/").status_code == 303


@pytest.mark.parametrize("target", ["//elsewhere.example", "https://elsewhere.example", "/\\elsewhere.example", "x"])
def test_sign_in_leads_to_no_other_site(visit: Visit, target: str) -> None:
    assert sign_in(visit(), TOKENS["vera"], next=target).headers["location"] == "/"
    assert sign_in(visit(), TOKENS["vera"], next="/registry").headers["location"] == "/registry"


def test_every_answer_carries_the_policy_and_pages_hold_no_inline_script(visit: Visit) -> None:
    client = visit("anna")
    for path in [*PAGES, "/audit", "/nothing", "/static/console.css", "/api/runs"]:
        answer = client.get(path)
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        if answer.headers["content-type"].startswith("text/html"):
            assert re.findall(r"<script(?![^>]* src=)", answer.text) == []
            assert re.findall(r"\s(?:style|on[a-z]+)=", answer.text) == []
            assert re.findall(r"""(?:src|href|action)=["'](?:https?:)?//""", answer.text) == []


def test_console_on_loopback_refuses_other_host_names(settings: ConsoleSettings) -> None:
    for is_loopback, status in ((True, 400), (False, 200)):
        app = create_app(replace(settings, is_loopback=is_loopback))
        with TestClient(app, base_url="http://rebound.example") as client:
            assert client.get("/sign-in").status_code == status


def test_console_without_users_shows_and_does_not_act(settings: ConsoleSettings) -> None:
    with TestClient(create_app(replace(settings, users=Users([]))), base_url=ORIGIN) as client:
        assert "view only" in client.get("/").text
        answer = client.post("/runs/kk-distill/stop", data={"csrf": ""})
        assert answer.status_code == 403
        assert "start it with --users" in answer.text


def test_host_other_than_loopback_requires_users(tmp_path: Path) -> None:
    require_usable(tmp_path, host="127.0.0.1", users=Users([]), certificate=None, key=None)
    with pytest.raises(ConfigError, match="requires users"):
        require_usable(tmp_path, host="0.0.0.0", users=Users([]), certificate=None, key=None)
    require_usable(tmp_path, host="0.0.0.0", users=users(), certificate=None, key=None)


def test_users_file_refers_to_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKENS["otto"] + "\n")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("ANNAS", TOKENS["anna"])
    file = tmp_path / "users.yaml"
    file.write_text(
        f"users:\n- {{name: otto, role: operate, token_file: {tmp_path}/token}}\n"
        "- {name: anna, role: approve, token_env: ANNAS}\n"
    )
    read = read_users(file)
    otto, anna = read.by_token(TOKENS["otto"]), read.by_token(TOKENS["anna"])
    assert otto is not None
    assert anna is not None
    assert (otto.name, otto.role, anna.role) == ("otto", Role.OPERATE, Role.APPROVE)
    assert read.by_token("") is None
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(AccessError, match="chmod 600"):
        read_users(file)


@pytest.mark.parametrize(
    "entry",
    ["{name: a, role: admin, token_env: ANNAS}", "{name: a, role: view}", "{name: a, role: view, token: secret}"],
)
def test_invalid_users_file_is_refused(tmp_path: Path, entry: str) -> None:
    (tmp_path / "users.yaml").write_text(f"users: [{entry}]")
    with pytest.raises(ConfigError):
        read_users(tmp_path / "users.yaml")
