"""Promotion decision of a tick."""

from __future__ import annotations

import logging
from typing import Any

from pipelines.run.result import RunResult
from pipelines.schedules.execution import TickExecution
from pipelines.schedules.planning import local_copy
from pipelines.schedules.promotion.gates import check_gates, evaluate_version, reason_with_gates
from pipelines.schedules.records import RunOutcome, RunPlan
from rlad.errors import AliasConflictError, ApprovalRequiredError, RunFailedError
from rlad.evaluation.accuracy import EvaluationSummary
from rlad.evaluation.promotion import decide
from rlad.registry.governance import SCHEDULE_REQUESTER, ModelGovernance
from rlad.registry.registry import ModelRegistry
from rlad.registry.versions import PRODUCTION, ModelVersion

logger = logging.getLogger(__name__)

BEST = "best"
"""Alias of the version with the highest accuracy on the frozen evaluation."""

# Another process may move an alias during the evaluation; the decision is then made again, up to this often.
_MAX_DECISIONS = 5


def decide_promotion(
    work: TickExecution, registry: ModelRegistry, plan: RunPlan, version: ModelVersion, result: RunResult
) -> RunOutcome:
    """Compare the student with the version in production, and promote it if it is better and passes all gates.

    If the schedule or the model requires approval, the promotion is requested instead.
    """
    governance = ModelGovernance(registry=registry, name=version.name)
    for _ in range(_MAX_DECISIONS):
        production = registry.aliases(version.name).get(PRODUCTION)
        earlier = work.tick.outcome
        if earlier is not None and (earlier.is_promoted or earlier.is_requested) and production == version.version:
            return earlier  # an earlier attempt died after the promotion, or after a request that was approved
        incumbent, source = _evaluation_of(work, registry, plan, production, result)
        decision = decide(result.after, incumbent, margin=work.config.margin)
        gates = check_gates(work, registry, production, result) if decision.promote else ()
        promotes = decision.promote and all(gate.is_passed for gate in gates)
        requests = promotes and (work.config.require_approval or governance.is_approval_required)
        outcome = RunOutcome(
            before=result.before.overall.mean,
            after=result.after.overall.mean,
            version=version.version,
            incumbent=production,
            incumbent_source=source,
            is_promoted=promotes and not requests,
            is_requested=requests,
            gates=gates,
            reason=reason_with_gates(decision.reason, gates),
            difference=decision.difference,
            interval=decision.interval,
        )
        work.save(outcome=outcome)  # before the alias moves, so that the reason of a promotion is never lost
        work.held.require()
        try:
            reason = f"{work.run_id}: {outcome.reason}"
            if outcome.is_requested:
                requester = f"{SCHEDULE_REQUESTER}{work.schedule.name}"
                governance.request(version.version, expected=production, reason=reason, requester=requester)
            elif outcome.is_promoted:
                registry.promote(version.name, version.version, expected=production, reason=reason)
            _update_best(registry, version)
        except (AliasConflictError, ApprovalRequiredError) as error:
            logger.warning("alias_moved schedule=%s error=%s", work.schedule.name, error)
            continue
        return outcome
    raise RunFailedError(
        f"another process moved the aliases of {version.name} {_MAX_DECISIONS} times during the decision on "
        f"{version.reference}"
    )


def _evaluation_of(
    work: TickExecution, registry: ModelRegistry, plan: RunPlan, production: int | None, result: RunResult
) -> tuple[EvaluationSummary | None, Any]:
    """Return the incumbent's evaluation on the same frozen prompts, and where it comes from.

    The sources, in order: the start of this run, the end of the incumbent's own run, an evaluation made now.
    """
    if production is None:
        return None, None
    if production == plan.parent:
        return result.before, "the run's start"
    for other in work.ticker.store.finished():
        known = other.plan
        is_comparable = known is not None and (known.registry, known.model, known.evaluation_fingerprint) == (
            plan.registry,
            plan.model,
            plan.evaluation_fingerprint,
        )
        if is_comparable and other.outcome is not None and other.outcome.version == production:
            return registry.get(plan.model, production).evaluation, "its own run"
    evaluated = evaluate_version(
        work,
        local_copy(registry, work.schedule, production),
        work.directory.config(work.run_id),
        work.directory.incumbent_evaluation(work.run_id, production),
    )
    return evaluated.accuracy["evaluation"], "evaluated now"


def _update_best(registry: ModelRegistry, version: ModelVersion) -> None:
    """Point the alias `best` at the version if its accuracy is the highest.

    The point estimates are compared, without a confidence interval: `best` serves retention and inspection, not users.
    """
    best = registry.aliases(version.name).get(BEST)
    if best is not None:
        known = registry.get(version.name, best).evaluation
        if (
            known.prompts.keys() == version.evaluation.prompts.keys()
            and known.overall.mean >= version.evaluation.overall.mean
        ):
            return
    registry.set_alias(
        version.name,
        BEST,
        version.version,
        expected=best,
        reason=f"{version.evaluation.overall.mean:.1%} on the frozen evaluation",
    )
