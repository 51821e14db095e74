"""`rlad registry serve`: vLLM's OpenAI-compatible server for a version. Registered by being imported."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.registry import DEFAULT, Reference, RegistryUri, app, open_registry, resolved
from rlad.errors import ConfigError

if TYPE_CHECKING:
    from rlad.registry.versions import ModelVersion

__all__ = ["app"]  # with the command below

_KEY_VARIABLE = "VLLM_API_KEY"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@app.command(context_settings={"allow_extra_args": True})
def serve(
    context: typer.Context,
    reference: Reference,
    host: Annotated[
        str, typer.Option(help=f"Address to listen on. Other than loopback requires the variable {_KEY_VARIABLE}.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            help="Maximum length of prompt and response, in tokens; default: that of the training.",
            show_default=False,
            min=1,
        ),
    ] = None,
    into: Annotated[Path, typer.Option(help="Directory for a copy of a model on an object store.")] = Path("models"),
    only_print: Annotated[bool, typer.Option("--print", help="Print the command instead of running it.")] = False,
    uri: RegistryUri = DEFAULT,
) -> None:
    """Serve a version by vLLM's OpenAI-compatible server, with the settings that it was trained and evaluated with.

    The version is verified, and is not followed when its alias moves. Arguments after `--` go to vLLM.
    """
    if host not in _LOOPBACK and not os.environ.get(_KEY_VARIABLE):
        raise ConfigError(
            f"--host {host} is open to other machines: set {_KEY_VARIABLE} to the key that clients must send, or "
            "listen on loopback behind a proxy"
        )
    if any(argument.partition("=")[0] == "--host" for argument in context.args):
        raise ConfigError("--host belongs before --: rlad checks that an address of other machines has a key")
    opened = open_registry(uri)
    version = resolved(opened, reference)
    path = opened.verified_path(version.name, version.version, into)
    command = [
        *_server(path),
        *("--host", host, "--port", str(port)),
        *serving_arguments(version, reference, max_model_len=max_model_len),
        *context.args,
    ]
    if parameters := required_of_clients(version):
        typer.echo(
            f"requests must have {json.dumps(parameters)}, as in training; vLLM has no argument for it", err=True
        )
    if only_print:
        typer.echo(shlex.join(command))
        return
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.execve(sys.executable, command, environment)


def _server(model: Path) -> list[str]:
    """Return the command that serves a model in this environment.

    Raises:
        ConfigError: vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed in this environment: install the extra `gpu` or `cpu` of rlad")
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        # `vllm serve` looks for this distribution and fails in the CPU build, which has another name.
        return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model)]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]


def serving_arguments(version: ModelVersion, reference: str, *, max_model_len: int | None) -> list[str]:
    """Return the arguments of the server that depend on the version.

    Args:
        version: The version.
        reference: Reference that was asked for, which is one of the served names.
        max_model_len: Maximum length in tokens; None for that of the training.
    """
    student, rollout, evaluation = (_section(version, name) for name in ("student", "rollout", "evaluation"))
    names = dict.fromkeys([version.name, version.reference, reference])
    arguments = ["--served-model-name", *names]
    dtype = student.get("dtype")
    if dtype is not None:
        arguments += ["--dtype", dtype]
    if dtype == "bfloat16":
        # As in rollouts and evaluations: vLLM would round the logits to bfloat16.
        arguments += ["--hf-overrides", '{"head_dtype": "float32"}']
    if template := student.get("chat_template_kwargs"):
        arguments += ["--default-chat-template-kwargs", json.dumps(template)]
    sampling = {key: evaluation[key] for key in ("temperature", "top_p") if evaluation.get(key) is not None}
    if sampling:
        # `vllm` leaves out the sampling defaults of the model's generation configuration, but not its end tokens.
        arguments += ["--generation-config", "vllm", "--override-generation-config", json.dumps(sampling)]
    if rollout.get("tensor_parallel", 1) > 1:
        arguments += ["--tensor-parallel-size", str(rollout["tensor_parallel"])]
    prompt, response = rollout.get("max_prompt_tokens"), rollout.get("max_response_tokens")
    if max_model_len is None and prompt is not None and response is not None:
        max_model_len = prompt + response
    return arguments if max_model_len is None else [*arguments, "--max-model-len", str(max_model_len)]


def required_of_clients(version: ModelVersion) -> dict[str, Any]:
    """Return request parameters that responses of the training had, and for which vLLM has no argument."""
    rollout = _section(version, "rollout")
    return {key: rollout[key] for key in ("stop", "stop_token_ids") if rollout.get(key)}


def _section(version: ModelVersion, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] | None = (version.config or {}).get(name)
    return found or {}
