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
            "of the run, if FILE is one; with --model also chat_template_kwargs, for example "
            "chat_template_kwargs.enable_thinking=false.",
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
    sources, template_arguments = _sources(file, settings or [])
    if template_arguments and model is None and not _is_run(file):
        raise ConfigError("chat_template_kwargs requires --model, whose chat template is applied")
    reports: dict[str, dict[str, Any]] = {}
    readings = {name: read_source(source) for name, source in sources.items()}
    for name, reading in readings.items():
        reports[name] = reading_report(reading, first)
        if name == "evaluation":
            reports[name] |= overlap_report(reading, readings["training"], "the training prompts")
        if against is not None:
            reports[name] |= overlap_report(reading, read_source(_source(against, {})), against)
        if model is not None:
            from pipelines.resolution.prompts import encode_reading
            from rlad.data.chat import load_tokenizer

            tokenizer = load_tokenizer(model)
            encoded = encode_reading(reading, tokenizer, None, template_arguments)
            reports[name] |= token_report(encoded, tokenizer, max_prompt_tokens)
    if as_json:
        typer.echo(json.dumps(reports.get("", reports), ensure_ascii=False, indent=2))
        return
    console = Console()
    for name, report in reports.items():
        if name:
            console.rule(f"{name} prompts", align="left")
        print_report(console, report)


def _is_run(file: str) -> bool:
    return file.lower().endswith((".yaml", ".yml"))


def _sources(file: str, settings: list[str]) -> tuple[dict[str, PromptSource], dict[str, Any]]:
    """Return the prompt sources that the arguments name, and the arguments of the chat template.

    Returns:
        One source by the empty name, or those of a run by `training` and `evaluation`.

    Raises:
        ConfigError: A setting is malformed or unknown.
    """
    from rlad.config import ModelConfig, load_run_config
    from rlad.config.load import validated

    if _is_run(file):
        config = load_run_config(file, settings)
        sources: dict[str, PromptSource] = {"training": config.prompts, "evaluation": config.evaluation.prompts}
        return sources, config.student.chat_template_kwargs
    values = _values(settings)
    template_arguments = values.pop("chat_template_kwargs", None) or {}
    if not isinstance(template_arguments, dict):
        raise ConfigError(
            "chat_template_kwargs must be a mapping, for example chat_template_kwargs.enable_thinking=false; got "
            f"{template_arguments!r}"
        )
    model = {"path": file, "chat_template_kwargs": template_arguments}
    checked = validated(ModelConfig, model, where="settings of the prompt source")
    return {"": _source(file, values)}, checked.chat_template_kwargs


def _values(settings: list[str]) -> dict[str, Any]:
    """Return the settings KEY=VALUE as a mapping.

    Raises:
        ConfigError: A setting is malformed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from rlad.config.load import resolved

    malformed = [setting for setting in settings if "=" not in setting]
    if malformed:
        raise ConfigError(f"expected settings of the form key=value, for example task=math; got {', '.join(malformed)}")
    try:
        values = resolved(OmegaConf.from_dotlist(settings), where="settings of the prompt source")
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"the settings {' '.join(settings)} are not valid YAML: {error}") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _source(file: str, values: dict[str, Any]) -> PromptFile | HubPrompts:
    """Return the prompt source of a file or a hub data set with these settings.

    Raises:
        ConfigError: A setting is unknown.
    """
    from rlad.config import HubPrompts, PromptFile
    from rlad.config.load import validated

    where = "settings of the prompt source"
    if (kind := values.get("source", "file")) == "hub":
        return validated(HubPrompts, {"dataset": file, **values, "source": "hub"}, where=where)
    if kind != "file":
        raise ConfigError(f"expected source=hub, or no source for a file; got source={kind}")
    return validated(PromptFile, {"path": file, **values, "source": "file"}, where=where)
