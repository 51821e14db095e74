"""Gates of a promotion: further prompt sets that a better student must pass, evaluated by `rlad eval`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipelines.run.result import RunResult
from pipelines.schedules.execution import TickExecution
from pipelines.schedules.planning import local_copy
from pipelines.schedules.prompts import load_gate_prompts, write_prompts
from pipelines.schedules.records import GateOutcome
from rlad.config import RunConfig
from rlad.config.load import suite_of, validated
from rlad.config.schedule import GateConfig
from rlad.errors import RunFailedError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.evaluation.latency import Latency, check_latency
from rlad.evaluation.promotion import check_gate
from rlad.integrity.durable import write_atomically
from rlad.registry.registry import ModelRegistry


def check_gates(
    work: TickExecution, registry: ModelRegistry, production: int | None, result: RunResult
) -> tuple[GateOutcome, ...]:
    """Evaluate the student of a tick on all gates, and the version in production if a gate compares with it.

    Both are evaluated on the same prompts, which are written once for each run.
    """
    gates = work.config.gates
    if not gates:
        return ()
    suite = _suite(work)
    candidate = evaluate_version(work, result.run.export, suite, work.directory.gates(work.run_id, None))
    incumbent = Evaluated(accuracy={}, latency={})
    if production is not None and any(gate.compares for gate in gates.values()):
        model = local_copy(registry, work.schedule, production)
        incumbent = evaluate_version(work, model, suite, work.directory.gates(work.run_id, production))
    unmeasured = [name for name, gate in gates.items() if gate.limits_latency and name not in candidate.latency]
    if unmeasured:
        raise RunFailedError(
            f"the evaluation of the gates has no latency of {', '.join(unmeasured)}, whose rules were added after it: "
            f"remove {suite} and {work.directory.gates(work.run_id, None)}"
        )
    return tuple(_outcome(name, gate, candidate, incumbent) for name, gate in gates.items())


def _outcome(name: str, gate: GateConfig, candidate: Evaluated, incumbent: Evaluated) -> GateOutcome:
    accuracy, present = candidate.accuracy[name], incumbent.accuracy.get(name)
    found = check_gate(accuracy, present, max_loss=gate.max_loss, min_accuracy=gate.min_accuracy)
    is_passed, reason = found.is_passed, found.reason
    latency, present_latency = candidate.latency.get(name), incumbent.latency.get(name)
    if latency is not None:
        speed = check_latency(latency, present_latency, max_s=gate.max_latency_s, max_growth=gate.max_latency_growth)
        is_passed, reason = is_passed and speed.is_passed, f"{reason}; {speed.reason}"
    return GateOutcome(
        name=name,
        is_passed=is_passed,
        reason=reason,
        accuracy=accuracy.overall.mean,
        incumbent_accuracy=present.overall.mean if present is not None else None,
        prompts=accuracy.overall.prompts,
        difference=found.difference,
        interval=found.interval,
        latency_s=latency.p95_s if latency is not None else None,
        incumbent_latency_s=present_latency.p95_s if present_latency is not None else None,
    )


def reason_with_gates(reason: str, gates: Sequence[GateOutcome]) -> str:
    """Return the reason of a decision with the gates that failed, or those that passed."""
    if failed := [f"gate {gate.name} failed: {gate.reason}" for gate in gates if not gate.is_passed]:
        return f"{'; '.join(failed)}; otherwise {reason}"
    return f"{reason}; passed {', '.join(gate.name for gate in gates)}" if gates else reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Results of `rlad eval`.

    Attributes:
        accuracy: Accuracy by set.
        latency: Latency by set, of the sets that measure it.
    """

    accuracy: Mapping[str, EvaluationSummary]
    latency: Mapping[str, Latency]


def evaluate_version(work: TickExecution, model: Path, config: Path, output: Path) -> Evaluated:
    """Evaluate a model by `rlad eval`. An earlier attempt's results are used again.

    Args:
        work: The tick.
        model: Directory of the model.
        config: Configuration of a run or a suite.
        output: Directory of the results; its name is that of the command.
    """
    figures = output / "evaluation.json"
    if not figures.is_file():
        if work.tick.job is None or work.tick.job.command != output.name:
            shutil.rmtree(output, ignore_errors=True)  # left by an interrupted attempt
        address = [f"cluster.address={work.address}"] if work.address else []
        command = ["eval", str(model), "--config", str(config), "--output", str(output), *address]
        work.execute(command, name=output.name, output=output)
    results = json.loads(figures.read_text())
    return Evaluated(
        accuracy={name: EvaluationSummary.from_dict(summary) for name, summary in results["sets"].items()},
        latency={name: Latency(**latency) for name, latency in results.get("latency", {}).items()},
    )


def _suite(work: TickExecution) -> Path:
    """Write the evaluation suite of the gates with their prompts, unless an earlier attempt of the run did."""
    file = work.directory.gates_config(work.run_id)
    if not file.is_file():
        run = validated(RunConfig, work.config.run, where=f"the run of schedule {work.schedule.name}")
        sets = {
            name: gate.evaluation(
                write_prompts(
                    load_gate_prompts(gate, work.config.working_dir), work.directory.gate_prompts(work.run_id, name)
                )
            )
            for name, gate in work.config.gates.items()
        }
        suite = suite_of(run, sets, more_verifiers=work.config.gate_verifiers)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, yaml.safe_dump(suite.model_dump(mode="json"), sort_keys=False))
    return file
