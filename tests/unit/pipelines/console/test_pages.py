"""Pages and JSON of the console: names, hostile text, damaged files, curves and timelines."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pipelines.console.data.curves import CurveCache
from pipelines.console.data.schedules import Schedules
from pipelines.console.data.timeline import Timelines
from pipelines.console.settings import ConsoleSettings
from pipelines.run.directory import RunDirectory
from pipelines.run.telemetry import Telemetry
from pipelines.schedules.store import ScheduleStore
from rlad.errors import CorruptFileError
from tests.console_stand_in import HOSTILE, MODEL

Visit = Callable[..., TestClient]


def test_list_has_every_run_with_its_state(visit: Visit) -> None:
    rows = {run["name"]: run for run in visit("vera").get("/api/runs").json()}
    assert {name: run["state"] for name, run in rows.items()} == {
        "kk-distill": "running",
        "sweep/alpha-0.1": "finished",
        "sweep/alpha-0.9": "failed",
        "smoke": "stopped",
        "broken": "damaged",
    }
    assert (rows["kk-distill"]["step"], rows["kk-distill"]["total_steps"]) == (60, 100)
    assert rows["kk-distill"]["accuracy"] == pytest.approx(27 / 40)
    assert "damaged" in rows["broken"]["reason"]


def test_schedule_that_waits_for_a_slot_is_queued(settings: ConsoleSettings) -> None:
    store = ScheduleStore(settings.schedules)
    schedule = store.schedule("nightly")
    first = store.acquire("nightly", "ticker", 60)
    try:
        store.queue.limit("local", 1)
        store.add(schedule.config.model_copy(update={"name": "other"}), evaluation_fingerprint="f" * 16)
        assert store.queue.take(first, schedule.config, requested_at=0.0)
        other = store.acquire("other", "ticker", 60)
        assert not store.queue.take(other, store.schedule("other").config, requested_at=0.0)
        assert [Schedules(settings.schedules).one(name).state for name in ("nightly", "other")] == ["running", "queued"]
        store.queue.free("other")
        store.release(other)
        store.remove("other")
    finally:
        store.queue.limit("local", None)
        store.queue.free("nightly")
        store.release(first)
        store.close()


# The client resolves plain `..` itself, as browsers do; encoded, it reaches the console.
@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e",
        "%2e%2e/audit.jsonl",
        "smoke/%2e%2e/smoke",
        "smoke%2f%2e%2e%2fsmoke",
        "/etc",
        "smoke%00",
        "link",
        "a%5c..%5cb",
    ],
)
def test_names_do_not_lead_out_of_the_directory(visit: Visit, settings: ConsoleSettings, name: str) -> None:
    link = settings.runs / "link"
    if not link.is_symlink():
        link.symlink_to(settings.runs / "smoke")
    client = visit("anna")
    for path in (f"/runs/{name}", f"/runs/{name}/samples", f"/api/runs/{name}/metrics", f"/api/runs/{name}/timeline"):
        assert client.get(path).status_code == 404, path
    assert client.get("/compare", params={"run": "../smoke"}).status_code == 404


@pytest.mark.parametrize("page", ["/runs/kk-distill/samples", "/schedules/nightly", "/runs/%3Cscript%3E"])
def test_hostile_text_is_escaped(visit: Visit, page: str) -> None:
    text = visit("vera").get(page).text
    assert HOSTILE not in text
    assert "alert(" not in text or html.escape(HOSTILE)[:14] in text
    assert "\u202e" not in text


def test_samples_colour_tokens_by_teacher_and_by_advantage(visit: Visit) -> None:
    client = visit("vera")
    page = client.get("/runs/kk-distill/samples?step=60").text
    assert page.count('class="card sample"') == 3
    assert 'class="tok agrees"' in page
    assert 'class="tok disagrees"' in page
    # Rewards 1, 0, 0: mean 1/3, deviation sqrt(2)/3, so the advantages are sqrt(2) and -sqrt(2)/2.
    assert "advantage <b>+1.41</b>" in page
    assert page.count("advantage <b>-0.71</b>") == 2
    by_advantage = client.get("/runs/kk-distill/samples?step=60&colour=advantage").text
    assert 'class="tok adv-very-high"' in by_advantage
    assert 'class="tok adv-low"' in by_advantage
    assert 'class="tok agrees"' not in by_advantage.partition("<article")[2]


def test_run_without_samples_and_missing_run_say_why(visit: Visit) -> None:
    client = visit("vera")
    assert "no samples at" in client.get("/runs/smoke/samples").text
    missing = client.get("/runs/nothing")
    assert missing.status_code == 404
    assert "no run" in missing.text
    answer = client.get("/api/runs/nothing/metrics")
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFoundError")
    assert client.get("/registry/nothing").status_code == 404
    assert client.get("/schedules/nothing").status_code == 404


def test_damaged_metrics_are_a_typed_refusal(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2.0}\nnot json\n')
    with pytest.raises(CorruptFileError, match="line 2"):
        CurveCache().read(path)


def test_curves_continue_while_the_run_appends_and_start_again_after_a_resume(tmp_path: Path) -> None:
    path, cache = tmp_path / "metrics.jsonl", CurveCache()
    assert cache.read(path).names == []
    path.write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
    assert cache.read(path).points("a", buckets=10) == ([1], [2.0])
    with path.open("a") as file:
        file.write(': NaN, "b": 1}\n')
    assert cache.read(path).points("a", buckets=10) == ([1, 2], [2.0, None])
    replaced = tmp_path / "new"
    replaced.write_text('{"step": 1, "a": 5.0}\n')
    replaced.replace(path)
    read = cache.read(path)
    assert (read.points("a", buckets=10), read.last_step) == (([1], [5.0]), 1)


def test_long_curve_keeps_extremes_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = [float(index % 7) for index in range(5000)]
    values[1234], values[4321] = 99.0, -99.0
    path.write_text("".join(json.dumps({"step": step, "a": value}) + "\n" for step, value in enumerate(values)))
    steps, kept = CurveCache().read(path).points("a", buckets=50)
    assert len(steps) <= 200
    assert (steps[0], steps[-1]) == (0, 4999)
    assert (kept[steps.index(1234)], kept[steps.index(4321)]) == (99.0, -99.0)
    assert all(values[step] == value for step, value in zip(steps, kept, strict=True))


def test_timeline_has_spans_of_the_window_and_busy_shares_by_worker(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    telemetry = Telemetry(run, start_step=0, figure_logs=[])
    telemetry.add_span("rollout", "a", 100.0, 104.0, worker="rollout-0")
    telemetry.add_span("rollout", "b", 102.0, 106.0, worker="rollout-0")
    telemetry.add_span("rollout", "c", 109.0, 110.0, worker="rollout-10")
    telemetry.add_span("rollout", "d", 100.0, 100.5, worker="rollout-2")
    telemetry.close()
    window = Timelines().window(run, 2.0, 10.0)
    assert [span.name for span in window.spans] == ["a", "b", "c"]
    assert [lane for lane, _ in window.lanes] == ["rollout-0", "rollout-2", "rollout-10"]
    assert window.busy == pytest.approx({"rollout-0": 4 / 8, "rollout-2": 0.0, "rollout-10": 1 / 8})


def test_pages_show_lineage_differences_and_history(visit: Visit) -> None:
    client = visit("vera")
    version = client.get(f"/registry/{MODEL}/3").text
    lineage = version[version.index('class="lineage"') : version.index("</ol>")]
    assert [f"{MODEL}@{number}" in lineage for number in (1, 2, 3)] == [True] * 3
    assert "Qwen/Qwen3-0.6B" in lineage
    difference = client.get(f"/registry/{MODEL}/diff?a=1&b=3").text
    assert "objective.alpha" in difference
    schedule = client.get("/schedules/nightly").text
    assert [event in schedule for event in ("promoted", "kept", "failed")] == [True] * 3


def test_pages_of_run_version_and_schedule_show_the_cost(visit: Visit) -> None:
    client = visit("vera")
    run = client.get("/runs/smoke").text
    assert "<span>cost</span><b>0.50 EUR</b><small>2.00 CPU-hours</small>" in run
    assert "<span>cost</span>" not in client.get("/runs/kk-distill").text
    assert "24.00 GPU-hours, 16.00 CPU-hours, 20.00 EUR" in client.get(f"/registry/{MODEL}/3").text
    assert "<dt>Cost of the run</dt><dd>–</dd>" in client.get(f"/registry/{MODEL}/1").text
    schedule = client.get("/schedules/nightly").text
    assert "<td>9.00 GPU-hours, 16.00 CPU-hours, 20.00 EUR</td>" in schedule
    assert "<dd>19.00 GPU-hours, 32.00 CPU-hours, 40.00 EUR in 2 runs</dd>" in schedule
    rows = {row["name"]: row["cost"] for row in client.get("/api/runs").json()}
    assert rows["smoke"] == {"gpu_hours": 0.0, "cpu_hours": 2.0, "amount": 0.5, "currency": "EUR"}
    assert rows["kk-distill"] is None


def test_comparison_names_every_run_and_offers_their_metrics(visit: Visit) -> None:
    page = visit("vera").get("/compare?run=smoke&run=sweep/alpha-0.1&metric=learner/loss").text
    assert 'data-metric="learner/loss"' in page
    assert """data-runs='["smoke", "sweep/alpha-0.1"]'""" in page


def test_pages_are_small_and_need_no_other_host(visit: Visit) -> None:
    client = visit("anna")
    page = client.get("/runs/kk-distill").text
    assert len(page) < 60_000
    assets = {part.split('"')[0] for part in page.split('="')[1:] if part.startswith("/static/")}
    assert len(assets) >= 6
    answers = [client.get(path, headers={"accept-encoding": "gzip"}) for path in assets]
    assert all(answer.status_code == 200 and "immutable" in answer.headers["cache-control"] for answer in answers)
    assert sum(int(answer.headers["content-length"]) for answer in answers) < 60_000
