"""`rlad deploy`: Kubernetes manifests of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipelines.kubernetes import Kind
from rlad.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.kubernetes.sizing import PodGroup

_NETWORK = "Networks and caches of pods with GPUs"

app = typer.Typer(name="deploy", help="Deploy on Kubernetes with KubeRay.", no_args_is_help=True)


@app.callback()
def deploy() -> None:
    """Deploy on Kubernetes with KubeRay."""


@app.command()
def render(
    config: Annotated[Path, typer.Argument(help="Configuration of a run, comparison or evaluation (YAML).")],
    out: Annotated[Path, typer.Option(help="Output directory.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings that override the file: key=value.")] = None,
    kind: Annotated[Kind, typer.Option(help="Kind of manifests to render.")] = "all",
    image: Annotated[
        str, typer.Option(help="Container image with rlad: NAME@sha256:DIGEST, or NAME:TAG.")
    ] = "rlad:0.1.0-gpu",
    namespace: Annotated[
        str | None,
        typer.Option(help="Namespace of all objects. Default: kubectl's current namespace.", show_default=False),
    ] = None,
    queue: Annotated[
        str | None,
        typer.Option(help="Kueue LocalQueue that admits the pods. Disables autoscaling.", show_default=False),
    ] = None,
    schedule: Annotated[str, typer.Option(help="Five cron fields of the recurring kinds.")] = "0 2 * * *",
    timezone: Annotated[str, typer.Option(help="IANA time zone of the schedule.")] = "Etc/UTC",
    suspend: Annotated[bool, typer.Option("--suspend", help="Create all objects suspended.")] = False,
    entrypoint: Annotated[
        str | None,
        typer.Option(help="Command of the jobs. Default: derived from the configuration.", show_default=False),
    ] = None,
    tick: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEDULE",
            help="Schedule of `rlad schedule` that the recurring kinds tick, instead of starting a new run each time.",
            show_default=False,
        ),
    ] = None,
    schedules_secret: Annotated[
        str, typer.Option(help="Secret with the URL of the schedule database (key url), for --tick.")
    ] = "rlad-schedules",
    max_workers: Annotated[
        list[str] | None,
        typer.Option(metavar="POOL=N", help="Maximum number of workers of a pool; repeatable.", show_default=False),
    ] = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(metavar="POOL=GIB", help="Memory of one pod of a pool, GiB; repeatable.", show_default=False),
    ] = None,
    gpu_memory_gib: Annotated[float, typer.Option(help="Memory of one GPU, GiB.")] = 80.0,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of one node.", min=1)] = 8,
    storage_claim: Annotated[
        str, typer.Option(help="PersistentVolumeClaim (ReadWriteMany) that all pods mount.")
    ] = "rlad-storage",
    token_secret: Annotated[str, typer.Option(help="Secret with Ray's token (key auth_token).")] = "rlad-ray-token",
    redis_address: Annotated[str, typer.Option(help="Redis for persistent clusters.")] = "redis:6379",
    redis_secret: Annotated[str, typer.Option(help="Secret with the Redis password (key password).")] = "rlad-redis",
    pod_resource: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="Further resource of pods with GPUs, for example rdma/hca=8; repeatable.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Environment variable of worker pods, for example NCCL_IB_HCA=mlx5; repeatable.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Capability of pods with GPUs: IPC_LOCK for RDMA, or SYS_RESOURCE; repeatable.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    compile_cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Directory for compiled kernels that outlives pods. Only engines may write there: they execute it.",
            show_default="in the pod",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
) -> None:
    """Render the manifests of CONFIG: one group of pods per pool, sized by `rlad plan`."""
    from pipelines.kubernetes.options import DeploymentOptions
    from pipelines.kubernetes.render import render as render_files
    from pipelines.kubernetes.render import write
    from pipelines.kubernetes.sizing import SizingOptions

    options = DeploymentOptions(
        image=image,
        namespace=namespace,
        queue=queue,
        schedule=schedule,
        timezone=timezone,
        is_suspended=suspend,
        storage_claim=storage_claim,
        token_secret=token_secret,
        redis_address=redis_address,
        redis_secret=redis_secret,
        entrypoint=entrypoint,
        tick=tick,
        schedules_secret=schedules_secret,
        pod_resources=_pairs(pod_resource, "--pod-resource"),
        environment=_pairs(env, "--env"),
        capabilities=tuple(capability or ()),
        compile_cache=compile_cache,
    )
    sizing = SizingOptions(
        gpu_memory_gib=gpu_memory_gib,
        gpus_per_node=gpus_per_node,
        max_workers=_by_pool(max_workers, "--max-workers"),
        memory_gib=_by_pool(memory, "--memory"),
    )
    rendered = render_files(
        config, overrides or [], kind=kind, options=options, sizing=sizing, source=config.as_posix()
    )
    write(rendered, out)
    console = Console()
    console.print(_table(rendered.groups))
    _print_nodes(console, rendered.groups, gpus_per_node)
    for reason in rendered.left_out:
        console.print(f"[yellow]left out[/] {reason}", soft_wrap=True, highlight=False)
    if not options.is_image_pinned:
        console.print(
            f"[yellow]image {image} is a tag, which can be moved to another image[/]: name it by its digest with "
            "--image NAME@sha256:DIGEST",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"{out}: {', '.join(sorted(rendered.files))}", soft_wrap=True, highlight=False)


def _print_nodes(console: Console, groups: tuple[PodGroup, ...], gpus_per_node: int) -> None:
    """Print the nodes with GPUs that the pods need, with a warning if they do not fill them."""
    from pipelines.kubernetes.sizing import nodes_needed

    gpus = sum(group.replicas * group.gpus for group in groups)
    if not gpus:
        return
    nodes, fewest = nodes_needed(groups, gpus_per_node), -(-gpus // gpus_per_node)
    text = f"{gpus} GPUs on {nodes} {'node' if nodes == 1 else 'nodes'} of {gpus_per_node}"
    if nodes > fewest:
        text = (
            f"[yellow]warning[/] {text}: the pods do not fill {fewest}, if the scheduler spreads them. Use numbers of "
            "workers with common divisors"
        )
    console.print(text, soft_wrap=True, highlight=False)


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    found = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{option} requires NAME=VALUE; got {text!r}")
        found[name] = value
    return found


def _by_pool(texts: list[str] | None, option: str) -> dict[str, int]:
    found = {}
    for text in texts or []:
        pool, _, number = text.partition("=")
        if not number.isdecimal() or int(number) == 0:
            raise ConfigError(
                f"{option} requires POOL=NUMBER with a positive integer, for example rollout=8; got {text!r}"
            )
        found[pool] = int(number)
    return found


def _table(groups: tuple[PodGroup, ...]) -> Table:
    table = Table(title="Pods", title_justify="left")
    for column in ("pool", "pods", "max pods", "workers/pod", "CPUs", "GPUs", "GiB"):
        table.add_column(column, justify="left" if column == "pool" else "right")
    for group in groups:
        memory = f"{group.memory_gib}{' (guess)' if group.is_memory_guessed else ''}"
        numbers = (group.replicas, group.max_replicas, group.workers_per_pod, group.cpus, group.gpus)
        table.add_row(group.pool, *map(str, numbers), memory)
    return table
