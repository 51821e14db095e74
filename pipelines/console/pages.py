"""Pages of the console."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from pipelines.console.access import SIGN_IN_COOKIE, Console, TheConsole, Viewer
from pipelines.console.actions import local_path
from pipelines.console.charts import COMPARED, charts_of
from pipelines.console.data.curves import Curves
from pipelines.console.data.models import APPROVED
from pipelines.console.data.runs import RunSummary, read_settings
from pipelines.console.data.samples import COLOURINGS, Colouring, logged_steps, read_responses
from pipelines.console.data.teachers import teachers_of
from pipelines.console.problems import ForbiddenError, message_of
from pipelines.console.rendering import render
from pipelines.console.users import Role
from pipelines.run.bottleneck import bottleneck_of_run
from pipelines.run.directory import RunDirectory, read_json_lines
from rlad.advantages import AdvantageEstimator
from rlad.errors import RladError
from rlad.registry.versions import PRODUCTION
from rlad.samples.reading import SampleOrder

router = APIRouter()

_RESPONSES = 8
_MAX_COMPARED = 8
_AUDIT_ENTRIES = 200
_RECENT_STEPS = 20


@router.get("/sign-in")
def sign_in(request: Request, console: TheConsole, next: str = "/") -> Response:  # noqa: A002
    """Show the form that asks for a token."""
    if not console.settings.users:
        return RedirectResponse("/", 303)
    nonce = console.sessions.new_nonce()
    csrf = console.sessions.sign_in_csrf(nonce)
    response = render(request, "sign_in.html", csrf=csrf, next=local_path(next))
    response.set_cookie(
        SIGN_IN_COOKIE,
        nonce,
        httponly=True,
        samesite="strict",
        secure=console.settings.is_encrypted,
        path="/sign-in",
        max_age=3600,
    )
    return response


@router.get("/")
def runs(request: Request, visitor: Viewer, console: TheConsole, state: str = "", text: str = "") -> Response:
    """List the runs."""
    found = console.runs.summaries()
    shown = [run for run in found if state in ("", run.state) and text.lower() in run.name.lower()]
    states = sorted({run.state for run in found})
    return render(
        request,
        "runs.html",
        visitor=visitor,
        runs=shown,
        total=len(found),
        states=states,
        state=state,
        text=text,
        root=str(console.runs.root),
    )


@router.get("/compare")
def compare(
    request: Request,
    visitor: Viewer,
    console: TheConsole,
    run: Annotated[list[str], Query(max_length=_MAX_COMPARED)] = [],  # noqa: B006
    metric: str = COMPARED,
) -> Response:
    """Show one metric of several runs in one chart."""
    chosen = [console.runs.summary(name) for name in dict.fromkeys(run)]
    names: set[str] = set()
    for each in chosen:
        if each.state != "damaged":
            names |= set(console.runs.curves(console.runs.find(each.name)).names)
    others = [each for each in console.runs.summaries() if each.name not in run]
    return render(
        request,
        "compare.html",
        visitor=visitor,
        runs=chosen,
        others=others,
        metrics=sorted(names),
        metric=metric if metric in names else next(iter(sorted(names)), metric),
        max_compared=_MAX_COMPARED,
    )


@router.get("/runs/{name:path}/timeline")
def timeline(request: Request, name: str, visitor: Viewer, console: TheConsole) -> Response:
    """Show when each worker of a run had work."""
    run, summary = console.runs.find(name), console.runs.summary(name)
    window, problem = None, ""
    try:
        window = console.timelines.window(run, None, None)
    except RladError as error:
        problem = message_of(error)
    return render(request, "timeline.html", visitor=visitor, run=summary, window=window, problem=problem)


@router.get("/runs/{name:path}/samples")
def samples(
    request: Request,
    name: str,
    visitor: Viewer,
    console: TheConsole,
    order: SampleOrder = SampleOrder.NEWEST,
    step: str = "",
    colour: Colouring = "agreement",
) -> Response:
    """Show logged responses of a run."""
    run, summary = console.runs.find(name), console.runs.summary(name)
    steps, problem = logged_steps(run), ""
    chosen = int(step) if step.isascii() and step.isdecimal() and int(step) in steps else None
    responses = []
    try:
        responses = read_responses(
            run, order=order, step=chosen, limit=_RESPONSES, colouring=colour, estimator=_estimator(run)
        )
    except (RladError, ValueError) as error:
        problem = message_of(error)
    return render(
        request,
        "samples.html",
        visitor=visitor,
        run=summary,
        responses=responses,
        steps=steps,
        step=chosen,
        order=order.value,
        orders=[each.value for each in SampleOrder],
        colour=colour,
        colours=COLOURINGS,
        problem=problem,
    )


@router.get("/runs/{name:path}")
def run(request: Request, name: str, visitor: Viewer, console: TheConsole) -> Response:
    """Show a run: charts, pools, evaluations and configuration."""
    found, summary = console.runs.find(name), console.runs.summary(name)
    values: dict[str, Any] = {
        "charts": [],
        "idle": {},
        "evaluations": [],
        "config": "",
        "bottleneck": None,
        "known": [],
    }
    if summary.state != "damaged":
        values = _run_values(console, found, summary)
    return render(request, "run.html", visitor=visitor, run=summary, path_on_disk=str(found.path), **values)


@router.get("/teachers")
def teachers(request: Request, visitor: Viewer, console: TheConsole) -> Response:
    """List the teachers of all runs."""
    found, root = teachers_of(console.runs), str(console.runs.root)
    return render(request, "teachers.html", visitor=visitor, teachers=found, root=root)


@router.get("/schedules")
def schedules(request: Request, visitor: Viewer, console: TheConsole) -> Response:
    """List the schedules."""
    views, broken = console.schedules.all()
    return render(request, "schedules.html", visitor=visitor, schedules=views, broken=broken)


@router.get("/schedules/{name}")
def schedule(request: Request, name: str, visitor: Viewer, console: TheConsole) -> Response:
    """Show a schedule: next ticks, history and settings."""
    return render(request, "schedule.html", visitor=visitor, view=console.schedules.one(name))


@router.get("/registry")
def registry(request: Request, visitor: Viewer, console: TheConsole) -> Response:
    """List the models."""
    models = [console.models.one(name) for name in console.models.names()]
    return render(request, "registry.html", visitor=visitor, models=models, uri=console.models.uri)


@router.get("/registry/{name}")
def model(request: Request, name: str, visitor: Viewer, console: TheConsole) -> Response:
    """Show a model: versions, aliases and their history."""
    found = console.models.one(name)
    return render(request, "model.html", visitor=visitor, model=found, production=PRODUCTION, approved=APPROVED)


@router.get("/registry/{name}/diff")
def diff(request: Request, name: str, a: int, b: int, visitor: Viewer, console: TheConsole) -> Response:
    """Show the differences between two versions."""
    found = console.models.one(name)
    difference = console.models.differences(name, a, b)
    return render(request, "diff.html", visitor=visitor, model=found, a=a, b=b, difference=difference)


@router.get("/registry/{name}/{version}")
def version(request: Request, name: str, version: int, visitor: Viewer, console: TheConsole) -> Response:
    """Show a version: lineage, files and accuracy."""
    found = console.models.one(name)
    return render(request, "version.html", visitor=visitor, model=found, version=found.version(version))


@router.get("/audit")
def audit(request: Request, visitor: Viewer, console: TheConsole) -> Response:
    """Show the last entries of the audit log."""
    if visitor.session is None or visitor.user.role < Role.OPERATE:
        raise ForbiddenError(f"the audit log requires the role {Role.OPERATE.label}")
    return render(request, "audit.html", visitor=visitor, entries=console.audit.newest(_AUDIT_ENTRIES))


def _run_values(console: Console, run: RunDirectory, summary: RunSummary) -> dict[str, Any]:
    curves = console.runs.curves(run)
    return {
        "charts": charts_of(curves.names),
        "idle": _idle_shares(curves),
        "evaluations": read_json_lines(run.evaluations),
        "config": run.config.read_text(),
        "bottleneck": _bottleneck(curves),
        "known": curves.names,
    }


def _idle_shares(curves: Curves) -> Mapping[str, float]:
    """Return the median idle share of each pool over the last steps."""
    shares = {name.removeprefix("idle/"): curves.last(name, _RECENT_STEPS) for name in curves.names if "idle/" in name}
    return {pool: statistics.median(values) for pool, values in shares.items() if values}


def _bottleneck(curves: Curves) -> str:
    """Describe the pool that bounds the last steps; empty before the first step."""
    times = {
        name: statistics.median(values)
        for name in curves.names
        if name.startswith("time/") and (values := curves.last(name, _RECENT_STEPS))
    }
    required = {"time/step_s", "time/generate_s", "time/score_s", "time/learn_s", "time/weights_s"}
    found = bottleneck_of_run([times], {}) if required <= times.keys() else None
    return "" if found is None else found.sentence()


def _estimator(run: RunDirectory) -> AdvantageEstimator:
    """Return the estimator of advantages of a run; the default for an objective without one."""
    chosen = read_settings(run)["objective"].get("advantage")
    return chosen if chosen in get_args(AdvantageEstimator) else "group_std"
