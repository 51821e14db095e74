"""`rlad init`: write a first configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer()


@app.command()
def init(
    student: Annotated[str, typer.Option("--student", metavar="MODEL", help="Model to train.", show_default=False)],
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompt file, folder or glob. A tenth of the prompts is kept for evaluation.",
            show_default=False,
        ),
    ],
    gpus: Annotated[
        int, typer.Option("--gpus", metavar="N", min=0, help="GPUs to divide; 0 runs on CPU.", show_default=False)
    ],
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", metavar="MODEL", help="Model that teaches.", show_default="none: reinforcement learning (grpo)"
        ),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--evaluation", metavar="FILE", help="Evaluation prompts.", show_default="a tenth of --prompts"),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="GPU type.")] = "h100",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write.", show_default="NAME.yaml")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write a commented configuration for MODEL, prompts and GPUs.

    Lengths follow from the prompts, verifiers from their answers, and the
    division of the GPUs from the forecast. Check the file with `rlad plan`.
    """
    from pipelines.init.draft import Request, write_configuration

    request = Request(
        student=student, teacher=teacher, prompts=prompts, evaluation=evaluation, gpus=gpus, device=device
    )
    console = Console()
    path = write_configuration(request, out, force=force)
    console.print(f"wrote {path}", soft_wrap=True, highlight=False)
    arguments = f" --gpus {gpus} --device {device}" if gpus else ""
    console.print(f"check it:  rlad plan {path}{arguments}", soft_wrap=True, highlight=False)
    console.print(f"train:     rlad run {path}", soft_wrap=True, highlight=False)
