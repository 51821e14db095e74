"""Runs, a registry and a schedule store for the tests of the console, written by rlad's own writers."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipelines.console.settings import ConsoleSettings
from pipelines.console.users import Role, User, Users
from pipelines.run.cost import write_cost
from pipelines.run.directory import RunDirectory
from pipelines.run.telemetry import Telemetry
from pipelines.schedules.records import RunOutcome
from pipelines.schedules.store import ScheduleStore
from rlad.config import load_run_config
from rlad.config.monitoring.cost import CostConfig
from rlad.config.schedule import ScheduleConfig
from rlad.contracts import ScoredGroup
from rlad.evaluation.accuracy import EvaluationSummary, PromptResult, summarise
from rlad.ledger import Ledger
from rlad.monitoring.cost import ReservedHours, RunCost
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import Lineage
from rlad.samples.log import LoggedGroup, ResponseText, SampleLog
from rlad.testing.records import make_group, make_teacher_scores, make_verdicts

SMOKE = Path(__file__).parents[1] / "configs" / "smoke_cpu.yaml"
TOKENS = {
    "vera": "view-token-0123456789abcdef",
    "otto": "operate-token-0123456789abcdef",
    "anna": "approve-token-0123456789abcdef",
}
ROLES = {"vera": Role.VIEW, "otto": Role.OPERATE, "anna": Role.APPROVE}
HOSTILE = '<script>alert("x")</script>'
MODEL = "kk-student"


@dataclass(slots=True)
class RecordedRequests:
    """Live runs that record the requests and carry out none."""

    requests: list[tuple[str, str, Mapping[str, int]]] = field(default_factory=list)

    def pools(self, run: RunDirectory) -> Mapping[str, Mapping[str, int]]:
        return {"rollout": {"target": 2, "ready": 2, "starting": 0, "draining": 0}}

    def stop(self, run: RunDirectory) -> None:
        self.requests.append(("stop", run.path.name, {}))

    def scale(self, run: RunDirectory, sizes: Mapping[str, int]) -> None:
        self.requests.append(("scale", run.path.name, sizes))


def evaluation(solved: int) -> EvaluationSummary:
    """Return the evaluation of a student that solves this many of 40 prompts."""
    return summarise(
        [
            PromptResult(
                prompt_id=f"p{index}",
                groups=(str(2 + index % 3),),
                rewards=(float(index < solved),),
                response_tokens=(90,),
                num_truncated=0,
            )
            for index in range(40)
        ]
    )


def write_run(
    root: Path,
    name: str,
    *,
    steps: int,
    total: int,
    seed: int,
    state: str,
    reason: str | None = None,
    alpha: float = 0.5,
) -> RunDirectory:
    """Write a run with metrics, evaluations and a timeline."""
    run, draw = RunDirectory(root / name), random.Random(seed)
    config = load_run_config(
        SMOKE, [f"name={name.replace('/', '-')}", f"training.steps={total}", f"objective.alpha={alpha}"]
    )
    start = time.time() - 40.0 * steps
    with run.hold(config, resume=False):
        Ledger(run.ledger).close()
        # Written at once: the driver's durable writes of every step would take most of the tests' time.
        lines = [
            {"step": step, "time": start + 9.0 * step, **_metrics(step, total, draw)} for step in range(1, steps + 1)
        ]
        run.seals.write(run.metrics, _json_lines(lines))
        evaluations = {step: evaluation(14 + round(22 * step / total)) for step in range(0, steps + 1, 10)}
        rows = [{"step": step, "time": start, "elapsed_s": 3.0, **each.as_dict()} for step, each in evaluations.items()]
        run.seals.write(run.evaluations, _json_lines(rows))
        telemetry = Telemetry(run, start_step=steps, figure_logs=[])
        for step in range(1, steps + 1):
            _add_spans(telemetry, start + 9.0 * step, step, draw)
        telemetry.close()
    run.status.write_text(json.dumps({"status": state, "reason": reason, "updated_at": time.time()}))
    if state == "running":
        beat = {"node": "node-1", "pid": 1, "started": 0.0, "late_after_s": 1e9}
        run.heartbeat.write_text(json.dumps(beat))
    return run


def write_samples(run: RunDirectory, step: int) -> None:
    """Log one group of three responses, one of them with markup and a control character."""
    texts = [
        "<think> A says that B lies. If A is a knight, B is a knave. </think> (1) A is a knight (2) B is a knave",
        f"A lies. {HOSTILE} So B is a knight \u202e too",
        "Both are knights",
    ]
    pieces = [_pieces(text) for text in texts]
    ids = [list(range(1, len(each) + 1)) for each in pieces]
    draw = np.random.default_rng(step)
    count = sum(map(len, ids))
    student = -draw.exponential(0.3, count).astype(np.float32)
    teacher = (student - draw.exponential(0.9, count) + 0.3).astype(np.float32)
    group = make_group(
        ids,
        uid=f"group-{step}",
        answer="A knight, B knave",
        behaviour_logprobs=student.tolist(),
        policy_version=step - 1,
    )
    verdicts = make_verdicts(group, [1.0, 0.0, 0.0])
    scored = ScoredGroup(
        group=group,
        verdicts=verdicts,
        rewards=verdicts.rewards,
        teacher_scores=make_teacher_scores(group, teacher.tolist()),
    )
    responses = [
        ResponseText(text="".join(each), token_ends=np.cumsum([len(piece) for piece in each]).tolist())
        for each in pieces
    ]
    log = SampleLog(run.samples, max_bytes=2**30, last_step=step)
    log.write(
        step,
        [
            LoggedGroup(
                scored=scored,
                prompt=f"A very special island … Who is who? {HOSTILE}",
                responses=responses,
                is_dropped=False,
                worker="rollout-0",
            )
        ],
        left_out=0,
    )


def write_registry(uri: str, folder: Path) -> ModelRegistry:
    """Write a model with three versions: the first in production, each trained from the one before."""
    registry = ModelRegistry.open(uri)
    for number in (1, 2, 3):
        files = folder / f"export-{number}"
        files.mkdir(parents=True)
        (files / "config.json").write_text("{}")
        (files / "model.safetensors").write_bytes(b"weights" * number)
        lineage = Lineage(
            run_id=f"nightly-2026110{number}",
            run_dir=f"/runs/nightly-{number}",
            config_sha256=f"c0ffee{number}",
            parent=f"{MODEL}@{number - 1}" if number > 1 else None,
            base_model="Qwen/Qwen3-0.6B",
            teachers={"teacher": "Qwen/Qwen3-8B"},
            prompts_fingerprint="0123456789abcdef",
            num_prompts=800 + number,
            steps=20 * number,
            rlad_version="0.1.0",
            git_commit=None,
            created_at=f"2026-11-0{number}T02:00:00+00:00",
            # The first version is one of a run that recorded no cost.
            cost=RunCost(gpu_hours=8.0 * number, cpu_hours=16.0, amount=20.0, currency="EUR") if number > 1 else None,
        )
        registry.add(
            MODEL,
            files,
            lineage=lineage,
            evaluation=evaluation(20 + 5 * number),
            idempotency_key=f"run-{number}",
            config={"objective": {"alpha": 0.1 * number}, "training": {"steps": 20 * number}},
        )
    registry.promote(MODEL, 1, expected=None, reason="first student")
    return registry


def write_schedule(url: str, folder: Path) -> None:
    """Write a schedule with a promoted, a kept and a failed tick."""
    store = ScheduleStore(url)
    config = ScheduleConfig.model_validate(
        {
            "name": "nightly",
            "run": load_run_config(SMOKE).model_dump(mode="json"),
            "cron": "0 2 * * *",
            "timezone": "Europe/Berlin",
            "registry": "registry",
            "working_dir": str(folder),
            "model": MODEL,
            "directory": str(folder / "nightly"),
        }
    )
    store.add(config, evaluation_fingerprint="f" * 16)
    lease = store.acquire("nightly", "ticker-1", 60)
    for day, status in enumerate(("finished", "finished", "failed")):
        at = 1793412000.0 + 86_400 * day
        tick = store.open_tick(lease, kind="cron", scheduled_at=at, run_id=f"nightly-{day}", status="running")
        outcome = None
        if status == "finished":
            outcome = RunOutcome(
                before=0.5 + day / 10,
                after=0.6 + day / 10,
                version=day + 1,
                incumbent=day or None,
                incumbent_source=None,
                is_promoted=day == 0,
                reason="better than version 0" if day == 0 else f"no significant gain {HOSTILE}",
                difference=0.1,
                interval=(0.02, 0.18),
            )
        store.save(
            lease,
            replace(
                tick,
                status=status,
                ended_at=at + 1800,
                spent_s=1790.0,
                attempts=1,
                outcome=outcome,
                reason="node lost" if status == "failed" else None,
                cost=RunCost(gpu_hours=8.0 + day, cpu_hours=16.0, amount=20.0, currency="EUR") if day else None,
            ),
        )
    store.release(lease)
    store.close()


def write_all(folder: Path) -> ConsoleSettings:
    """Write everything that the console shows, and return its settings."""
    root = folder / "runs"
    live = write_run(root, "kk-distill", steps=60, total=100, seed=1, state="running")
    for step in (40, 50, 60):
        write_samples(live, step)
    write_run(root, "sweep/alpha-0.1", steps=80, total=80, seed=2, state="finished", alpha=0.1)
    write_run(
        root,
        "sweep/alpha-0.9",
        steps=45,
        total=80,
        seed=3,
        state="failed",
        reason="verifier pool lost more workers than its budget of 3 allows",
        alpha=0.9,
    )
    stopped = write_run(root, "smoke", steps=6, total=6, seed=4, state="stopped", reason="stopped on request")
    hours = {"rollout": ReservedHours(cpu=1.5), "learner": ReservedHours(cpu=0.5)}
    write_cost(stopped, CostConfig(price_per_cpu_hour=0.25, currency="EUR"), hours, attempts=2, warned_of={})
    broken = root / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("objective: [")
    write_registry(str(folder / "registry"), folder)
    url = f"sqlite:///{folder / 'schedules.sqlite'}"
    write_schedule(url, folder)
    return ConsoleSettings(
        runs=root,
        registry=str(folder / "registry"),
        schedules=url,
        audit=folder / "audit.jsonl",
        users=users(),
        live=RecordedRequests(),
    )


def users() -> Users:
    """Return one user of each role."""
    return Users([(User(name=name, role=ROLES[name]), token) for name, token in TOKENS.items()])


def _metrics(step: int, total: int, draw: random.Random) -> dict[str, float]:
    progress = step / total
    generate, learn = 5.0 + draw.random(), 2.0 + draw.random()
    return {
        "reward/mean": 0.35 + 0.55 * (1 - math.exp(-3 * progress)) + draw.gauss(0, 0.03),
        "learner/loss": 0.5 * math.exp(-2 * progress) + draw.gauss(0, 0.01),
        "rollout/response_tokens_mean": 90 + 40 * progress + draw.gauss(0, 3),
        "rollout/response_tokens_max": 220 + draw.gauss(0, 12),
        "rollout/truncated_fraction": max(0.0, 0.08 - 0.07 * progress + draw.gauss(0, 0.01)),
        "rollout/tokens_per_s": 2400 + draw.gauss(0, 120),
        "time/step_s": generate + learn + 0.9,
        "time/generate_s": generate,
        "time/score_s": 0.5,
        "time/teacher_s": 0.3,
        "time/learn_s": learn,
        "time/weights_s": 0.4,
        "teacher/teacher_tokens": 100.0 * step,
        "objective/log_ratio_teacher_mean": 0.4 * math.exp(-progress) + draw.gauss(0, 0.01),
        "objective/teacher_disagreement_fraction": 0.3,
        "objective/log_ratio_teacher_abs_mean": 0.5 * math.exp(-progress) + draw.gauss(0, 0.01),
        "objective/log_ratio_behaviour_abs_mean": 0.02 + abs(draw.gauss(0, 0.004)),
        "objective/clip_fraction_positive": 0.08 + draw.gauss(0, 0.01),
        "objective/clip_fraction_negative": 0.05 + draw.gauss(0, 0.01),
        "learner/gradient_norm": 0.7 + abs(draw.gauss(0, 0.2)),
        "idle/rollout": 0.22 + draw.random() / 20,
        "idle/teacher": 0.71 + draw.random() / 20,
        "idle/verifier": 0.9 + draw.random() / 20,
        "idle/learner": 0.55 + draw.random() / 20,
    }


def _json_lines(lines: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _add_spans(telemetry: Telemetry, at: float, step: int, draw: random.Random) -> None:
    for number in range(8):
        begin = at + draw.random() * 2
        sampled = begin + 2 + draw.random() * 3
        telemetry.add_span("rollout", f"{step}-{number}", begin, sampled, worker=f"rollout-{number % 2}")
        telemetry.add_span("verifier", f"{step}-{number}", sampled, sampled + 0.2)
        telemetry.add_span("teacher", f"{step}-{number}", sampled, sampled + 0.4 + draw.random())
    telemetry.add_span("learner (exposed)", f"step {step}", at + 6, at + 8)
    telemetry.add_span("weights", f"version {step}", at + 8, at + 8.4)


def _pieces(text: str) -> Sequence[str]:
    words = text.split(" ")
    return [word if index == 0 else f" {word}" for index, word in enumerate(words)]
