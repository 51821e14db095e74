"""`rlad prompts`: show how a prompt file is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rlad.errors import ConfigError

if TYPE_CHECKING:
    from rlad.config import HubPrompts, PromptFile, PromptSource

app = typer.Typer()


@app.command()
def prompts(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A prompt file, a folder of files, or a glob in quotes, also s3:// and gs://; a hub data set with "
            "source=hub; or the .yaml file of a run, for its training and evaluation prompts.",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the prompt source, for example task=math or 'columns={prompt: problem, answer: result}'; "
            "of the run, if FILE is one.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Model directory. Its tokenizer and chat template are applied.",
            show_default=False,
        ),
    ] = None,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-prompt-tokens",
            metavar="N",
            min=1,
            help="Count longer prompts, which a run leaves out. Requires --model.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="FILE",
            help="Count the prompts that also occur in another file, such as the evaluation prompts.",
            show_default=False,
        ),
    ] = None,
    first: Annotated[int, typer.Option("--first", metavar="N", min=0, help="Number of prompts to show.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how FILE is read: layout, columns, counts, and the first prompts.

    FILE is read with the settings of `prompts:` in a configuration. With
    --model, one prompt is shown after the chat template, with its tokens.
    Exits with status 1 if a run would refuse FILE.
    """
    from pipelines.resolution.prompt_report import overlap_report, print_report, reading_report, token_report
    from rlad.data.prompts import read_source

    if max_prompt_tokens is not None and model is None:
        raise ConfigError("--max-prompt-tokens requires --model, whose tokenizer counts the tokens")
    reports: dict[str, dict[str, Any]] = {}
    readings = {name: read_source(source) for name, source in _sources(file, settings or []).items()}
    for name, reading in readings.items():
        reports[name] = reading_report(reading, first)
        if name == "evaluation":
            reports[name] |= overlap_report(reading, readings["training"], "the training prompts")
        if against is not None:
            reports[name] |= overlap_report(reading, read_source(_source(against, [])), against)
        if model is not None:
            from pipelines.resolution.prompts import encode_reading
            from rlad.data.chat import load_tokenizer

            tokenizer = load_tokenizer(model)
            reports[name] |= token_report(encode_reading(reading, tokenizer, None), tokenizer, max_prompt_tokens)
    if as_json:
        typer.echo(json.dumps(reports.get("", reports), ensure_ascii=False, indent=2))
        return
    console = Console()
    for name, report in reports.items():
        if name:
            console.rule(f"{name} prompts", align="left")
        print_report(console, report)


def _sources(file: str, settings: list[str]) -> dict[str, PromptSource]:
    """Return the prompt sources that the arguments name: one, or those of a run by `training` and `evaluation`."""
    if not file.lower().endswith((".yaml", ".yml")):
        return {"": _source(file, settings)}
    from rlad.config import load_run_config

    config = load_run_config(file, settings)
    return {"training": config.prompts, "evaluation": config.evaluation.prompts}


def _source(file: str, settings: list[str]) -> PromptFile | HubPrompts:
    """Return the prompt source that the arguments describe.

    Raises:
        ConfigError: A setting is malformed or unknown.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from rlad.config import HubPrompts, PromptFile
    from rlad.config.load import validated

    malformed = [setting for setting in settings if "=" not in setting]
    if malformed:
        raise ConfigError(f"expected settings of the form key=value, for example task=math; got {', '.join(malformed)}")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(settings), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"the settings {' '.join(settings)} are not valid YAML: {error}") from error
    assert isinstance(values, dict)
    where = "settings of the prompt source"
    if (kind := values.pop("source", "file")) == "hub":
        return validated(HubPrompts, {"dataset": file, **values, "source": "hub"}, where=where)
    if kind != "file":
        raise ConfigError(f"expected source=hub, or no source for a file; got source={kind}")
    return validated(PromptFile, {"path": file, **values, "source": "file"}, where=where)
