"""Loading and validation of configuration files, with `key=value` overrides from the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import omegaconf
import yaml
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationError

from rlad.config.evaluation import EvaluationConfig, EvaluationSuite
from rlad.config.run import RunConfig
from rlad.credentials import is_secret_name, redact, require_no_secret_references, require_no_secrets
from rlad.errors import ConfigError
from rlad.verifiers import VerifierConfig

ModelT = TypeVar("ModelT", bound=BaseModel)

_MOVED = {
    "rollout.max_group_attempts": "failures.max_group_attempts",
    "rollout.max_abandoned_groups": "failures.max_abandoned_groups",
    "learner.step_timeout_s": "failures.step_timeout_s",
}
"""Former settings, by their former keys."""
_TEACHER_KINDS = ("path", "service", "url")


def load_run_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and validate a run's configuration.

    Args:
        path: YAML file.
        overrides: Dotted `key=value` settings, for example `learner.zero_stage=3`. Later ones take precedence.

    Raises:
        ConfigError: The configuration is invalid. The message has one line per problem.
    """
    return validated(RunConfig, read_settings(path, overrides), where=str(path))


def load_evaluation_suite(path: Path | str, overrides: Sequence[str] = ()) -> EvaluationSuite:
    """Read and validate an evaluation suite.

    Args:
        path: YAML file of a suite (it has `sets`) or of a run. A run becomes a suite with one set, `evaluation`.
        overrides: Dotted `key=value` settings.

    Raises:
        ConfigError: The configuration is invalid. The message has one line per problem.
    """
    settings = read_settings(path, overrides)
    if "sets" in settings:
        return validated(EvaluationSuite, settings, where=str(path))
    run = validated(RunConfig, settings, where=str(path))
    return suite_of(run, {"evaluation": run.evaluation})


def suite_of(
    run: RunConfig,
    sets: Mapping[str, EvaluationConfig],
    *,
    more_verifiers: Mapping[str, VerifierConfig] = MappingProxyType({}),
) -> EvaluationSuite:
    """Return a suite with the student, verifiers and engines of a run.

    Args:
        run: Configuration of the run.
        sets: Prompt sets by name.
        more_verifiers: Verifiers of tasks that the run does not have, by task.
    """
    return EvaluationSuite(
        name=run.name,
        seed=run.seed,
        student=run.student,
        verifiers={**more_verifiers, **run.verifiers},
        verifier_pool=run.verifier_pool,
        rollout=run.rollout,
        sets=dict(sets),
        failures=run.failures,
        cluster=run.cluster,
    )


def read_settings(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and merge overrides into it, without validation.

    Raises:
        ConfigError: The file does not exist, is not YAML or holds a secret, or an override is not `key=value`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    _require_pairs(overrides)
    try:
        settings = resolved(with_overrides(_loaded(path), overrides), where=str(path))
    except (yaml.YAMLError, omegaconf.errors.OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {redact(str(error))}") from error
    return {str(key): value for key, value in settings.items()}


def merged(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Merge overrides into settings, without validation.

    Raises:
        ConfigError: An override is not `key=value`, or the settings then hold a secret.
    """
    try:
        found = with_overrides(OmegaConf.create(dict(settings)), overrides)
        return {str(key): value for key, value in resolved(found, where="the new settings").items()}
    except (yaml.YAMLError, omegaconf.errors.OmegaConfBaseException) as error:
        raise ConfigError(f"the new settings are not valid: {redact(str(error))}") from error


def with_overrides(settings: DictConfig, overrides: Sequence[str]) -> Any:
    """Return settings with overrides merged into them, not yet resolved. May change `settings`.

    Raises:
        ConfigError: An override is not `key=value`.
    """
    _require_pairs(overrides)
    return OmegaConf.merge(_clear_replaced_kinds(settings, overrides), OmegaConf.from_dotlist(list(overrides)))


def _require_pairs(overrides: Sequence[str]) -> None:
    malformed = [override for override in overrides if "=" not in override]
    if malformed:
        raise ConfigError(
            f"expected overrides of the form key=value, for example training.steps=10; got "
            f"{', '.join(map(repr, malformed))}"
        )


def _loaded(path: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except OSError as error:  # OmegaConf raises it for a number, too
        raise ConfigError(f"{path}: expected a file with a mapping of settings; {redact(str(error))}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: expected a mapping of settings; got a list")
    return loaded


def resolved(settings: Any, *, where: str) -> Any:
    """Resolve the references of OmegaConf settings, and return them as plain Python objects.

    Settings are stored in files of the run. A reference to a secret, or a secret, is therefore refused.

    Raises:
        ConfigError: The settings hold a secret, or refer to an environment variable that does.
    """
    require_no_secret_references(OmegaConf.to_container(settings, resolve=False), where=where)
    plain = OmegaConf.to_container(settings, resolve=True)
    require_no_secrets(plain, where=where)
    return plain


def _clear_replaced_kinds(settings: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Clear sections that overrides turn into another kind: `prompts.source=file`, `teacher={service: NAME}`.

    The keys of the file's kind would be unknown keys of the new one.
    """
    for override in overrides:
        place, _, text = override.partition("=")
        given = yaml.safe_load(text)
        section = place
        if not isinstance(given, dict):
            section, _, key = place.rpartition(".")
            given = {key: given}
        present = OmegaConf.select(settings, section) if section else None
        if isinstance(present, DictConfig) and _is_another_kind(section, present, given):
            OmegaConf.update(settings, section, {}, merge=False)
    return settings


def _is_another_kind(section: str, present: DictConfig, given: Mapping[str, Any]) -> bool:
    if section.split(".")[0] in ("teacher", "teachers"):
        return any(given.get(kind) is not None and kind not in present for kind in _TEACHER_KINDS)
    return "source" in given and "source" in present and given["source"] != present["source"]


def validated(model: type[ModelT], settings: object, *, where: str) -> ModelT:
    """Validate settings against a model.

    Raises:
        ConfigError: The settings are invalid. The message starts with `where` and has one line per problem.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join([f"{where}:", *(f"  {problem}" for problem in _problems(error, model))])) from error


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    for problem in error.errors():
        # A location part in parentheses is the tag of a union member, not a key.
        where = ".".join(part for part in map(str, problem["loc"]) if not part.startswith("(")) or "configuration"
        if problem["type"] == "extra_forbidden" and (now := _present_key(where)) is not None:
            yield f"{where}: this setting is now `{now}`; move it there"
        elif problem["type"] == "extra_forbidden":
            yield f"{where}: unknown key{_suggestion(problem['loc'], model)}"
        elif problem["type"] == "missing":
            yield f"{where}: required setting is missing"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "teacher_kind" and isinstance(problem["input"], dict):
                message += f"; got {', '.join(map(str, problem['input'])) or 'none of them'}"
            value = "" if is_secret_name(where) else _received(message, problem["input"])
            yield redact(f"{where}: {message}{value}")


def _present_key(key: str) -> str | None:
    """Return the present key of a setting that has moved, within its section of the file; None for other keys."""
    for former, present in _MOVED.items():
        if key == former or key.endswith(f".{former}"):
            return key.removesuffix(former) + present
    return None


def _received(message: str, value: object) -> str:
    """Return the rejected value in parentheses, unless it is a whole section or the message has it already."""
    return "" if "; got " in message or isinstance(value, dict | BaseModel) else f" (got {_shortened(value)})"


def _suggestion(location: Sequence[int | str], model: type[BaseModel]) -> str:
    """Return a hint for an unknown key: the nearest one of the outermost section if it is there, else of any."""
    key, known = str(location[-1]), _known_keys(model)
    if len(location) == 1 and (own := difflib.get_close_matches(key, sorted(model.model_fields), n=1, cutoff=0.8)):
        return f"; did you mean `{own[0]}`?"
    if key in known:
        return ", although another kind of this section has it"
    nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean `{nearest[0]}`?" if nearest else ""


def _known_keys(model: type[BaseModel]) -> set[str]:
    """Return the field names of a model and of all models in its fields, including unions and containers."""
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
