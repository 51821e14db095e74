"""Reading a run's YAML, with `key=value` overrides from the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import omegaconf
import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from rlad.config.evaluation import EvaluationSuite
from rlad.config.run import RunConfig
from rlad.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_run_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a run's configuration.

    Args:
        path: a YAML file.
        overrides: dotted `key=value` settings, later ones winning, for example `learner.zero_stage=3`.

    Raises:
        ConfigError: one sentence for each problem: where, what was expected, what came.
    """
    return validated(RunConfig, read_settings(path, overrides), where=str(path))


def load_evaluation_suite(path: Path | str, overrides: Sequence[str] = ()) -> EvaluationSuite:
    """Read what `rlad eval` evaluates on: a file with `sets`, or a run's configuration, whose `evaluation` is then the only set, `evaluation`.

    Raises:
        ConfigError: as `load_run_config`.
    """
    settings = read_settings(path, overrides)
    if "sets" in settings:
        return validated(EvaluationSuite, settings, where=str(path))
    run = validated(RunConfig, settings, where=str(path))
    return EvaluationSuite(
        name=run.name,
        seed=run.seed,
        student=run.student,
        verifiers=run.verifiers,
        verifier_pool=run.verifier_pool,
        rollout=run.rollout,
        sets={"evaluation": run.evaluation},
        cluster=run.cluster,
    )


def read_settings(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file with overrides merged into it, not validated yet.

    Raises:
        ConfigError: no such file, no YAML, or an override that is not `key=value`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    malformed = [override for override in overrides if "=" not in override]
    if malformed:
        raise ConfigError(
            f"an override is key=value, for example training.steps=10; got {', '.join(map(repr, malformed))}"
        )
    try:
        merged = OmegaConf.merge(
            _without_replaced_teachers(OmegaConf.load(path), overrides), OmegaConf.from_dotlist(list(overrides))
        )
        settings = OmegaConf.to_container(merged, resolve=True)
    except (yaml.YAMLError, omegaconf.errors.OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds a list, a configuration is a mapping of settings")
    return {str(key): value for key, value in settings.items()}


def _without_replaced_teachers(settings: Any, overrides: Sequence[str]) -> Any:
    """A teacher that overrides give as a shared one (`teacher.service=NAME`) takes the file's place whole: its engine's settings are another's matter."""
    for override in overrides:
        section, _, key = override.partition("=")[0].rpartition(".")
        if (
            key in ("service", "url")
            and section.split(".")[0] in ("teacher", "teachers")
            and OmegaConf.select(settings, section) is not None
        ):
            OmegaConf.update(settings, section, {}, merge=False)
    return settings


def validated(model: type[ModelT], settings: object, *, where: str) -> ModelT:
    """Settings as their model.

    Raises:
        ConfigError: one sentence for each problem, headed by `where`.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join([f"{where}:", *(f"  {problem}" for problem in _problems(error, model))])) from error


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    for problem in error.errors():
        # A part in parentheses is the kind of section that was chosen, no key.
        where = ".".join(part for part in map(str, problem["loc"]) if not part.startswith("(")) or "the configuration"
        if problem["type"] == "extra_forbidden":
            yield f"{where}: unknown key{_suggestion(str(problem['loc'][-1]), _known_keys(model))}"
        elif problem["type"] == "missing":
            yield f"{where}: required, but not set"
        else:
            yield f"{where}: {problem['msg'].removeprefix('Value error, ')} (got {_shortened(problem['input'])})"


def _suggestion(key: str, known: Iterable[str]) -> str:
    if key in (known := set(known)):
        return ": another kind of section has it, not this one"
    nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean `{nearest[0]}`?" if nearest else ""


def _known_keys(model: type[BaseModel]) -> set[str]:
    """Field names of a model and of every model its fields mention, unions and containers included."""
    names: set[str] = set()
    pending: list[Any] = [model]
    seen: set[Any] = set()
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation in seen:
                continue
            seen.add(annotation)
            names |= annotation.model_fields.keys()
            pending += [field.annotation for field in annotation.model_fields.values()]
        pending += getattr(annotation, "__args__", ())
    return names


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
