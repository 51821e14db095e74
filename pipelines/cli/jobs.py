"""`rlad submit`, `list`, `status`, `logs`, `scale` and `stop`: runs as Ray jobs, and control of live runs."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipelines.cli.entries import Entry, print_entries, print_wrapped
from rlad.credentials import redact

if TYPE_CHECKING:
    from pipelines.jobs.client import Job, JobClient
    from pipelines.run.directory import RunDirectory

app = typer.Typer()

Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: http://HOST:8265 (dashboard), HOST:6379 or auto. "
        "Default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then the local cluster.",
        show_default=False,
    ),
]
Target = Annotated[str, typer.Argument(metavar="RUN|JOB", help="Run directory or job id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Added to the time that a job has to end itself.
_STOP_MARGIN_S = 60


@app.command()
def submit(
    config: Annotated[
        Path, typer.Argument(help="Configuration of a run or comparison (YAML), in the working directory.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that override the file: key=value.")] = None,
    address: Address = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Run directory, on storage that all nodes mount. Default: runs/NAME.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end of the run and exit with its status.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for the end of the run and show its output.")
    ] = False,
    working_dir: Annotated[
        Path, typer.Option(help="Directory to upload with the job. Files in .gitignore and .rladignore are left out.")
    ] = Path(),
    submission_id: Annotated[
        str | None,
        typer.Option(help="Job id. Default: derived from the run's name and directory.", show_default=False),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Environment variable of the job; repeatable. Secrets are refused.",
            show_default=False,
        ),
    ] = None,
    pip: Annotated[
        list[str] | None,
        typer.Option(metavar="PACKAGE", help="Package that Ray installs for the job; repeatable.", show_default=False),
    ] = None,
    py_executable: Annotated[
        str | None,
        typer.Option(help="Python interpreter on the nodes. Default: python on their PATH.", show_default=False),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="Restarts of a run's driver, from its last checkpoint, after it died or hung."),
    ] = 3,
) -> None:
    """Run CONFIG as a job of a Ray cluster.

    Submitting the same run again finds its active job. If the job has ended, a new job continues the run.
    """
    from pipelines.jobs import submission as jobs
    from pipelines.jobs.client import JobClient
    from pipelines.jobs.working_directory import read_working_directory
    from rlad.config.load import read_settings

    console = Console()
    name = str(read_settings(config, overrides or []).get("name", "run"))
    directory = read_working_directory(working_dir, without=[jobs.absolute_run_dir(run_dir, name)])
    submission = jobs.read_submission(
        config,
        overrides or [],
        run_dir=run_dir,
        directory=directory,
        python=py_executable,
        max_restarts=max_restarts,
    )
    environment = jobs.JobEnvironment(
        variables=jobs.parse_variables(env or []), packages=pip or [], python=py_executable
    )
    client = JobClient(address)
    job, is_new = jobs.submit(client, submission, directory, environment, job_id=submission_id)
    if is_new:
        sent = f"{len(directory.sizes)} files, {directory.num_bytes / 2**20:.1f} MiB of {directory.root}"
        console.print(f"job {job.id} submitted to {client.address} ({sent})", soft_wrap=True, highlight=False)
        if directory.left_out:
            console.print(
                f"not sent, because they look like credentials or lead out of the directory: "
                f"{', '.join(directory.left_out)}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
    else:
        console.print(f"job {job.id} already runs this: {job.status}", soft_wrap=True, highlight=False)
    console.print(
        f"run directory {submission.run_dir} (must be on storage that all nodes mount)", soft_wrap=True, highlight=False
    )
    if wait or follow:
        raise typer.Exit(_end_of(client, job, follow=follow))
    console.print(f"rlad logs {job.id} --follow", soft_wrap=True, highlight=False, style="dim")


@app.command(name="list")
def list_jobs(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs of a Ray cluster with their runs."""
    from pipelines.jobs.client import JobClient

    client = JobClient(address)
    # Each `rlad status` or `scale` also joins the cluster as a job, so programs that were not submitted are listed
    # only while they last, or if they are runs.
    known = [job for job in client.all() if job.is_submitted or job.run_dir is not None or not job.has_ended]
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in known]))
    elif known:
        print_jobs(Console(), known)
    else:
        typer.echo(f"no jobs at {client.address}")


@app.command()
def status(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|JOB]", help="Run directory or job id. Lists all jobs if omitted.", show_default=False
        ),
    ] = None,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the status of a run (steps, pools, metrics of the last step), of a job, or of all jobs."""
    from pipelines.cluster import live_run as control

    if target is None:
        list_jobs(address, as_json)
        return
    run = _run_at(target)
    if run is None:
        job = _job(target, address)[1]
        if as_json:
            typer.echo(json.dumps(asdict(job)))
            return
        _print_job(job)
        run = None if job.run_dir is None else _run_at(job.run_dir)
        if run is None:
            return
    state = control.status(run)
    if as_json:
        typer.echo(json.dumps(asdict(control.ended_state(run) if state is None else state)))
    else:
        control.print_status(run, state, Console())


@app.command()
def logs(
    target: Target,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the output until the job ends.")] = False,
) -> None:
    """Show the output of a job."""
    client, job = _job(target, address)
    if follow and not job.has_ended:
        _wait(client, job, follow=True)
    else:
        _write(client.logs(job.id))


@app.command()
def scale(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    sizes: Annotated[list[str], typer.Argument(help="New pool size: POOL=WORKERS, for example rollout=8.")],
) -> None:
    """Change the size of a live run's rollout pool."""
    from pipelines.cluster import live_run as control
    from pipelines.run.directory import RunDirectory

    control.scale(RunDirectory(run), control.parse_sizes(sizes))
    typer.echo("request sent; `rlad status` shows the workers as they start and drain")


@app.command()
def stop(target: Target, address: Address = None) -> None:
    """Stop a run after its present step, or a job at once.

    Continue a stopped run from its last checkpoint with `--resume`, or by submitting it again.
    """
    from pipelines.cluster import live_run as control
    from pipelines.jobs.submission import STOP_GRACE_S
    from rlad.errors import DeadlineError

    run = _run_at(target)
    if run is not None:
        control.stop(run)
        typer.echo("request sent; the run ends after its present step")
        return
    client, job = _job(target, address)
    if not client.stop(job.id):
        typer.echo(f"job {job.id} has already ended: {client.wait(job.id).status}")
        return
    try:
        ended = client.wait(job.id, deadline_s=STOP_GRACE_S + _STOP_MARGIN_S)
    except TimeoutError as error:
        raise DeadlineError(
            f"job {job.id} has not ended {STOP_GRACE_S + _STOP_MARGIN_S} s after the stop request: "
            f"see `rlad logs {job.id}`"
        ) from error
    typer.echo(f"job {job.id} {ended.status}")


def _run_at(target: str) -> RunDirectory | None:
    """Return the run in a local directory, or None. The cluster may know runs whose directory is not local."""
    from pipelines.run.directory import RunDirectory

    run = RunDirectory(target)
    return run if run.config.is_file() else None


def _job(target: str, address: str | None) -> tuple[JobClient, Job]:
    """Find a job by its id or run directory, on the given cluster or on the one that the run directory names."""
    from pipelines.jobs.client import JobClient
    from pipelines.jobs.submission import find_job
    from pipelines.run.directory import RunDirectory
    from rlad.errors import ClusterError, RunDirectoryError

    run = RunDirectory(target)
    if address is None and run.cluster.is_file():
        address = json.loads(run.cluster.read_text())["address"]
    try:
        client = JobClient(address)
    except ClusterError as error:
        if address is None and os.sep in target:
            raise RunDirectoryError(f"no run at {run.path}: it contains no {run.config.name}; and {error}") from error
        raise
    return client, find_job(client, target)


def _end_of(client: JobClient, job: Job, *, follow: bool) -> int:
    """Wait for a job, print the reason if it failed, and return the exit code for the shell."""
    from pipelines.jobs.submission import exit_code, failure
    from rlad.errors import JobError

    ended = _wait(client, job, follow=follow)
    if ended.status == "succeeded":
        typer.echo(f"job {ended.id} succeeded")
        return 0
    try:
        log = client.logs(ended.id)
    except JobError:  # its node is gone; the cluster's message contains the last lines
        log = ended.message
    reason = escape(redact(failure(ended, log)))
    Console(stderr=True).print(f"[bold red]error:[/] {reason}", highlight=False, soft_wrap=True)
    return exit_code(ended)


def _wait(client: JobClient, job: Job, *, follow: bool) -> Job:
    try:
        return client.wait(job.id, write=_write if follow else None)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            f"[yellow]no longer waiting[/]: job {job.id} continues; stop it with `rlad stop {job.id}`",
            soft_wrap=True,
            highlight=False,
        )
        raise typer.Exit(130) from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def print_jobs(console: Console, jobs: list[Job]) -> None:
    """Print jobs: status, id, steps, start and duration of each, then its run directory or command."""
    entries = []
    for job in jobs:
        started = "" if job.started_at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started_at))
        cells = (job.status, job.id, _steps(job), started, _duration(job))
        entries.append(Entry(cells=cells, details=job.run_dir or job.entrypoint))
    print_entries(console, ("status", "job", "steps", "started", "duration"), entries)


def _steps(job: Job) -> str:
    """Return the trained steps of a job's run, if its directory is on this machine."""
    from pipelines.run.directory import read_json_lines

    run = None if job.run_dir is None else _run_at(job.run_dir)
    if run is None:
        return ""
    steps = read_json_lines(run.metrics)
    return f"{int(steps[-1]['step']) if steps else 0}/{run.read_config().training.steps}"


def _duration(job: Job) -> str:
    if job.started_at is None:
        return ""
    minutes, seconds = divmod(int((job.ended_at or time.time()) - job.started_at), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _print_job(job: Job) -> None:
    message = job.message.partition("\n")[0]
    print_wrapped(Console(), f"job {job.id}: {job.status}, {_duration(job)}. {message}")
