"""`rlad prompts`: show how a prompt file is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rlad.errors import ConfigError

if TYPE_CHECKING:
    from rlad.config import PromptFile

app = typer.Typer()


@app.command()
def prompts(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A prompt file, a folder of files, or a glob in quotes.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Settings of the prompt source, for example task=math or 'columns={prompt: problem, answer: result}'; "
            "with --model also chat_template_kwargs, for example chat_template_kwargs.enable_thinking=false.",
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
    first: Annotated[int, typer.Option("--first", metavar="N", min=0, help="Number of prompts to show.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how FILE is read: layout, columns, counts, and the first prompts.

    FILE is read with the settings of `prompts:` in a configuration. With
    --model, one prompt is shown after the chat template, with its tokens.
    Exits with status 1 if a run would refuse FILE.
    """
    from pipelines.resolution.prompt_report import print_report, reading_report, token_report
    from rlad.data.prompt_files import read_prompts

    if max_prompt_tokens is not None and model is None:
        raise ConfigError("--max-prompt-tokens requires --model, whose tokenizer counts the tokens")
    source, template_arguments = _source(file, settings or [])
    if template_arguments and model is None:
        raise ConfigError("chat_template_kwargs requires --model, whose chat template is applied")
    reading = read_prompts(source)
    report = reading_report(reading, first)
    if model is not None:
        from pipelines.resolution.prompts import encode_reading
        from rlad.data.chat import load_tokenizer

        tokenizer = load_tokenizer(model)
        report |= token_report(
            encode_reading(reading, tokenizer, None, template_arguments), tokenizer, max_prompt_tokens
        )
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        print_report(Console(), report)


def _source(file: str, settings: list[str]) -> tuple[PromptFile, dict[str, Any]]:
    """Return the prompt source that the arguments describe, and the arguments of the chat template.

    Raises:
        ConfigError: A setting is malformed or unknown.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from rlad.config import ModelConfig, PromptFile
    from rlad.config.load import validated

    malformed = [setting for setting in settings if "=" not in setting]
    if malformed:
        raise ConfigError(f"expected settings of the form key=value, for example task=math; got {', '.join(malformed)}")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(settings), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"the settings {' '.join(settings)} are not valid YAML: {error}") from error
    assert isinstance(values, dict)
    template_arguments = values.pop("chat_template_kwargs", None) or {}
    if not isinstance(template_arguments, dict):
        raise ConfigError(
            "chat_template_kwargs must be a mapping, for example chat_template_kwargs.enable_thinking=false; got "
            f"{template_arguments!r}"
        )
    where = "settings of the prompt source"
    source = validated(PromptFile, {"path": file, **values, "source": "file"}, where=where)
    checked = validated(ModelConfig, {"path": str(file), "chat_template_kwargs": template_arguments}, where=where)
    return source, checked.chat_template_kwargs
