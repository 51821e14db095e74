"""The console in headless Chromium: sign-in, every page, every action, phone and dark mode, accessibility.

With RLAD_CONSOLE_FIGURES set, the screenshots of the documentation are written into that folder.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pipelines.console.app import create_app
from pipelines.console.settings import ConsoleSettings
from rlad.registry.registry import ModelRegistry
from tests.console_stand_in import MODEL, TOKENS, RecordedRequests, write_all

playwright_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: requirements/browser.lock")
CHROMIUM = shutil.which("chromium")
AXE = Path(__file__).parents[2] / "build" / "vendor" / "axe.min.js"
FIGURES = os.environ.get("RLAD_CONSOLE_FIGURES")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")

PAGES = {
    "runs": "/",
    "run": "/runs/kk-distill",
    "samples": "/runs/kk-distill/samples?step=60",
    "timeline": "/runs/kk-distill/timeline",
    "compare": "/compare?run=sweep/alpha-0.1&run=sweep/alpha-0.9&run=kk-distill",
    "teachers": "/teachers",
    "schedules": "/schedules",
    "schedule": "/schedules/nightly",
    "registry": "/registry",
    "model": f"/registry/{MODEL}",
    "version": f"/registry/{MODEL}/3",
    "diff": f"/registry/{MODEL}/diff?a=1&b=3",
    "audit": "/audit",
    "broken": "/runs/broken",
    "missing": "/runs/nothing",
}
SIZES = {"wide": (1280, 860), "narrow": (390, 780)}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ConsoleSettings:
    return write_all(tmp_path_factory.mktemp("console"))


@pytest.fixture(scope="module")
def address(settings: ConsoleSettings) -> Iterator[str]:
    """Serve the console by uvicorn on a free port."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def signed_in(browser: Any, address: str, name: str, *, size: str = "wide", scheme: str = "light") -> Any:
    """Return a page after the sign-in of a user. Errors of scripts and of the policy are collected in `page.faults`."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
    page.goto(address)
    page.fill("[name=token]", TOKENS[name])
    page.click("main button")
    page.wait_for_selector("text=Sign out")
    return page


def test_wrong_token_is_refused(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    page.fill("[name=token]", "wrong-token-0123456789abcdef")
    page.click("main button")
    assert "no user of this console has this token" in page.inner_text("main")
    page.goto(address)
    assert page.url.startswith(f"{address}/sign-in")


SCREENS = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]


# Without figures to make, two screens show each width and each scheme once.
@pytest.mark.parametrize(("size", "scheme"), SCREENS if FIGURES else [("wide", "dark"), ("narrow", "light")])
def test_pages_fit_the_screen_and_axe_finds_nothing_serious(browser: Any, address: str, size: str, scheme: str) -> None:
    page = signed_in(browser, address, "anna", size=size, scheme=scheme)
    for name, path in PAGES.items():
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
        if AXE.is_file():
            # The policy of the page allows no script from elsewhere, so axe runs in a world that it does not govern.
            page.evaluate(AXE.read_text() + "; undefined")
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            serious = [each for each in found if each["impact"] in ("serious", "critical")]
            assert [(each["id"], each["nodes"][0]["html"][:120]) for each in serious] == [], name
        if FIGURES and name in ("runs", "run", "samples", "timeline", "compare", "teachers", "model"):
            Path(FIGURES).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=f"{FIGURES}/{name}-{size}-{scheme}.png")
    ours = [fault for fault in page.faults if "404" not in fault]  # of the missing page
    page.context.close()
    assert ours == []


def test_charts_are_drawn_and_keys_move_the_timeline(browser: Any, address: str) -> None:
    page = signed_in(browser, address, "vera")
    page.goto(f"{address}/runs/kk-distill")
    page.wait_for_selector(".plot canvas")
    page.wait_for_load_state("networkidle")
    assert page.locator(".plot canvas").count() == page.locator(".plot").count() == 10
    page.goto(f"{address}/runs/kk-distill/timeline")
    page.wait_for_selector("#timeline rect")
    before = page.inner_text("#window")
    page.focus("#timeline")
    page.keyboard.press("+")
    page.wait_for_function("before => document.getElementById('window').textContent !== before", arg=before)
    page.context.close()


def test_viewer_has_no_actions_and_theme_is_kept(browser: Any, address: str) -> None:
    page = signed_in(browser, address, "vera")
    page.goto(f"{address}/runs/kk-distill")
    assert page.locator("main form[method=post]").count() == 0
    page.click("#theme")
    page.goto(f"{address}/registry/{MODEL}")
    assert page.get_attribute("html", "data-theme") == "dark"
    assert page.locator("main form[method=post]").count() == 0
    page.context.close()


def test_operator_scales_and_stops_by_keyboard(browser: Any, address: str, settings: ConsoleSettings) -> None:
    page = signed_in(browser, address, "otto")
    page.goto(f"{address}/runs/kk-distill")
    page.focus("summary:has-text('Scale a pool')")
    page.keyboard.press("Enter")
    page.fill("[name=workers]", "4")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=rollout of kk-distill is being scaled to 4 workers")
    page.focus("summary:has-text('Stop')")
    page.keyboard.press("Enter")
    page.click("text=Stop the run")
    page.wait_for_selector("text=kk-distill ends after its current step")
    assert isinstance(settings.live, RecordedRequests)
    assert settings.live.requests == [("scale", "kk-distill", {"rollout": 4}), ("stop", "kk-distill", {})]
    page.context.close()


def test_version_is_approved_promoted_and_rolled_back(browser: Any, address: str, settings: ConsoleSettings) -> None:
    registry = ModelRegistry.open(settings.registry)
    approver = signed_in(browser, address, "anna")
    approver.goto(f"{address}/registry/{MODEL}")
    change(approver, f"/registry/{MODEL}/3/approve", "reviewed")
    operator = signed_in(browser, address, "otto")
    operator.goto(f"{address}/registry/{MODEL}")
    assert operator.locator("form[action$='/approve']").count() == 0
    change(operator, f"/registry/{MODEL}/3/promote", "better")
    assert registry.aliases(MODEL) == {"production": 3, "approved": 3}
    change(operator, f"/registry/{MODEL}/3/roll-back", "slow")
    assert registry.aliases(MODEL)["production"] == 1
    approver.context.close()
    operator.context.close()


def change(page: Any, action: str, reason: str) -> None:
    """Open the form of an action, give a reason and send it."""
    details = page.locator("details", has=page.locator(f"form[action='{action}']"))
    details.locator("summary").click()
    details.locator("[name=reason]").fill(reason)
    details.locator("button").click()
    page.wait_for_selector("[role=status]:not(#window)")
