"""`rlad submit`, `list`, `status`, `logs`, `scale`, `stop`: runs as jobs of a Ray cluster, and a hand on a run while it lives."""

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
from rich.table import Table

if TYPE_CHECKING:
    from pipelines.jobs.client import Job, JobClient
    from pipelines.run.directory import RunDirectory

app = typer.Typer()

Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: its dashboard (http://HOST:8265), HOST:6379 or auto. Without it RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's.",
        show_default=False,
    ),
]
Target = Annotated[str, typer.Argument(metavar="RUN|JOB", help="A run directory, or a job's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# Beside what a job takes to end itself.
_STOP_MARGIN_S = 60


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="A run's or comparison's YAML file, in the working directory.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that win over the file: key=value.")] = None,
    address: Address = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where everything of the run goes; all nodes have to see it. Without it runs/NAME, seen from here.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the run has ended, with its exit status.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="The same, and show what it prints.")] = False,
    working_dir: Annotated[
        Path, typer.Option(help="Directory that travels with the job; .gitignore and .rladignore name what stays.")
    ] = Path(),
    submission_id: Annotated[
        str | None,
        typer.Option(help="The job's id. Without it made of the run's name and directory.", show_default=False),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Environment variable of the job, no secret; again for another.",
            show_default=False,
        ),
    ] = None,
    pip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PACKAGE", help="Package that Ray installs for the job; again for another.", show_default=False
        ),
    ] = None,
    py_executable: Annotated[
        str | None, typer.Option(help="Python on the nodes. Without it the one that they find.", show_default=False)
    ] = None,
) -> None:
    """Run CONFIG on a Ray cluster, as a job. Again: finds the job, or continues the run where the job has ended."""
    from pipelines.jobs import submission as jobs
    from pipelines.jobs.client import JobClient
    from pipelines.jobs.working_directory import read_working_directory
    from rlad.config.load import read_settings

    console = Console()
    name = str(read_settings(config, overrides or []).get("name", "run"))
    directory = read_working_directory(working_dir, without=[jobs.absolute_run_dir(run_dir, name)])
    submission = jobs.read_submission(
        config, overrides or [], run_dir=run_dir, directory=directory, python=py_executable
    )
    environment = jobs.JobEnvironment(
        variables=jobs.parse_variables(env or []), packages=pip or [], python=py_executable
    )
    client = JobClient(address)
    job, is_new = jobs.submit(client, submission, directory, environment, job_id=submission_id)
    if is_new:
        sent = f"{len(directory.sizes)} files, {directory.num_bytes / 2**20:.1f} MiB of {directory.root}"
        console.print(f"job {job.id} submitted to {client.address} ({sent})", soft_wrap=True, highlight=False)
    else:
        console.print(f"job {job.id} does this run already: {job.status}", soft_wrap=True, highlight=False)
    console.print(
        f"run directory {submission.run_dir}: every node has to see it there", soft_wrap=True, highlight=False
    )
    if wait or follow:
        raise typer.Exit(_end_of(client, job, follow=follow))
    console.print(f"rlad logs {job.id} --follow", soft_wrap=True, highlight=False, style="dim")


@app.command(name="list")
def list_jobs(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs of a Ray cluster, and the runs that they do."""
    from pipelines.jobs.client import JobClient

    client = JobClient(address)
    # Each `rlad status` or `scale` joins the cluster too, for a moment: what was not submitted is of interest while it lasts, or as a run.
    known = [job for job in client.all() if job.is_submitted or job.run_dir is not None or not job.has_ended]
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in known]))
    elif known:
        Console().print(_table(known))
    else:
        typer.echo(f"no jobs at {client.address}")


@app.command()
def status(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|JOB]", help="A run directory, or a job's id. Without it all jobs.", show_default=False
        ),
    ] = None,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; null of a run that is not alive.")] = False,
) -> None:
    """Say how a run stands: steps, pools, the last step's figures. Or how a job does; or all jobs."""
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
        typer.echo(json.dumps(None if state is None else asdict(state)))
    else:
        control.print_status(run, state, Console())


@app.command()
def logs(
    target: Target,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Show what a run prints that was submitted as a job."""
    client, job = _job(target, address)
    if follow and not job.has_ended:
        _wait(client, job, follow=True)
    else:
        _write(client.logs(job.id))


@app.command()
def scale(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    sizes: Annotated[list[str], typer.Argument(help="POOL=WORKERS, for example rollout=8.")],
) -> None:
    """Change the size of RUN's rollout pool while it trains."""
    from pipelines.cluster import live_run as control
    from pipelines.run.directory import RunDirectory

    control.scale(RunDirectory(run), control.parse_sizes(sizes))
    typer.echo("asked; `rlad status` shows the workers as they come and go")


@app.command()
def stop(target: Target, address: Address = None) -> None:
    """End a run after its present step, or a job now. A run is continued from its last checkpoint by `--resume`, or by submitting it again."""
    from pipelines.cluster import live_run as control
    from pipelines.jobs.submission import STOP_GRACE_S
    from rlad.errors import DeadlineError

    run = _run_at(target)
    if run is not None:
        control.stop(run)
        typer.echo("asked; the run ends after its present step")
        return
    client, job = _job(target, address)
    if not client.stop(job.id):
        typer.echo(f"job {job.id} had ended: {client.wait(job.id).status}")
        return
    try:
        ended = client.wait(job.id, deadline_s=STOP_GRACE_S + _STOP_MARGIN_S)
    except TimeoutError as error:
        raise DeadlineError(
            f"job {job.id} has not ended {STOP_GRACE_S + _STOP_MARGIN_S} s after it was stopped: see `rlad logs {job.id}`"
        ) from error
    typer.echo(f"job {job.id} {ended.status}")


def _run_at(target: str) -> RunDirectory | None:
    """The run in a directory that this machine sees. A path that is none is a run's on other machines, or a mistake: the cluster knows."""
    from pipelines.run.directory import RunDirectory

    run = RunDirectory(target)
    return run if run.config.is_file() else None


def _job(target: str, address: str | None) -> tuple[JobClient, Job]:
    """A job by its id or its run's directory, on the cluster that was named, or on the one where a living run says that it is."""
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
            raise RunDirectoryError(f"no run at {run.path}: it holds no {run.config.name}; and {error}") from error
        raise
    return client, find_job(client, target)


def _end_of(client: JobClient, job: Job, *, follow: bool) -> int:
    """Wait for a job and say why it failed, if it did. Returns the exit code for the shell."""
    from pipelines.jobs.submission import exit_code, failure
    from rlad.errors import JobError

    ended = _wait(client, job, follow=follow)
    if ended.status == "succeeded":
        typer.echo(f"job {ended.id} succeeded")
        return 0
    try:
        log = client.logs(ended.id)
    except JobError:  # the node that it ran on is gone; the cluster's message has the last lines
        log = ended.message
    Console(stderr=True).print(f"[bold red]error:[/] {escape(failure(ended, log))}", highlight=False, soft_wrap=True)
    return exit_code(ended)


def _wait(client: JobClient, job: Job, *, follow: bool) -> Job:
    try:
        return client.wait(job.id, write=_write if follow else None)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            f"[yellow]no longer waiting[/]: job {job.id} goes on; `rlad stop {job.id}` ends it",
            soft_wrap=True,
            highlight=False,
        )
        raise typer.Exit(130) from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _table(known: list[Job]) -> Table:
    table = Table()
    for column in ("job", "status", "steps", "started", "took", "run directory"):
        table.add_column(column, justify="right" if column in ("steps", "took") else "left", overflow="fold")
    for job in known:
        started = "" if job.started_at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started_at))
        table.add_row(job.id, job.status, _steps(job), started, _took(job), job.run_dir or escape(job.entrypoint))
    return table


def _steps(job: Job) -> str:
    """Trained steps of a job's run, where this machine sees its directory."""
    from pipelines.run.directory import read_json_lines

    run = None if job.run_dir is None else _run_at(job.run_dir)
    if run is None:
        return ""
    steps = read_json_lines(run.metrics)
    return f"{int(steps[-1]['step']) if steps else 0}/{run.read_config().training.steps}"


def _took(job: Job) -> str:
    if job.started_at is None:
        return ""
    minutes, seconds = divmod(int((job.ended_at or time.time()) - job.started_at), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _print_job(job: Job) -> None:
    message = job.message.partition("\n")[0]
    Console().print(f"job {job.id}: {job.status}, {_took(job)}. {escape(message)}", soft_wrap=True, highlight=False)
