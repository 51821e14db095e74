"""The traces that a run trains on: generated, or taken from an earlier run, and copied into the run directory once."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pipelines.monitoring.cost_meter import CostMeter
from pipelines.resolution.resolved_run import ResolvedRun
from pipelines.run.progress import RunProgress
from pipelines.traces.generation import generate_traces, offline_settings
from rlad.data.chat import load_tokenizer, template_fingerprint
from rlad.data.trace_files import TraceManifest, require_manifest
from rlad.data.training_traces import TrainingTraces, write_training_traces
from rlad.errors import PlanError


def require_reusable_traces(run: ResolvedRun) -> None:
    """Refuse traces of an earlier run that do not fit this one, before anything starts.

    A run that samples its own responses, generates its traces, or has its own copy of them already needs no check.

    Raises:
        PlanError: The traces are missing, incomplete, or do not fit the student and the prompts.
    """
    offline = run.config.offline
    if offline is None or offline.traces is None or run.directory.training_traces.exists():
        return
    reused_traces(run, _folder(run))


def reused_traces(run: ResolvedRun, folder: Path) -> TraceManifest:
    """Read the manifest of an earlier run's traces, which must fit this run's student and prompts.

    Raises:
        PlanError: They are missing, incomplete, or do not fit.
    """
    manifest = require_manifest(folder)
    manifest.provenance.require_fits(
        tokenizer=run.tokenizer_fingerprint,
        template=template_fingerprint(load_tokenizer(run.student), run.config.student.chat_template_kwargs),
        dataset=run.dataset_fingerprint,
        path=folder,
    )
    return manifest


async def prepare_traces(run: ResolvedRun, progress: RunProgress, console: Console, cost: CostMeter) -> TrainingTraces:
    """Open the run's own copy of its traces. Generates and copies them first if there is none.

    Raises:
        PlanError: The teacher solved no prompt.
        RladError: The error that ended the generation.
    """
    offline, target, folder = offline_settings(run.config), run.directory.training_traces, _folder(run)
    if not target.exists():
        manifest = TraceManifest.read(folder) or await generate_traces(run, folder, progress, cost)
        console.print(_summary(manifest, folder), highlight=False, soft_wrap=True)
        if manifest.counts.accepted == 0:
            raise PlanError(
                f"no trace to train on: the teacher solved none of {manifest.counts.prompts} prompts "
                f"({manifest.counts.generated} responses). Look at the verifier's counts in {folder}, and evaluate the "
                "teacher with `rlad eval`"
            )
        write_training_traces(
            manifest.part_paths(folder),
            target,
            max_prompts=offline.max_prompts,
            max_accepted_per_prompt=offline.max_accepted_per_prompt,
        )
    return TrainingTraces(target)


def _folder(run: ResolvedRun) -> Path:
    traces = offline_settings(run.config).traces
    return run.directory.traces if traces is None else Path(traces).expanduser()


def _summary(manifest: TraceManifest, folder: Path) -> str:
    counts = manifest.counts
    rejected = ", ".join(f"{number} {outcome}" for outcome, number in counts.rejected.items() if number)
    return (
        f"traces: {counts.accepted} of {counts.generated} responses to {counts.prompts} prompts accepted, "
        f"{counts.unsolved_prompts} prompts unsolved{f' (rejected: {rejected})' if rejected else ''}: {folder}"
    )
