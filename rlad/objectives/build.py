"""Construction of objectives from their settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from rlad.config.objectives import (
    EopdConfig,
    ExopdConfig,
    GrpoConfig,
    KdrlConfig,
    ObjectiveConfig,
    ObjectiveSettings,
    OpdConfig,
    RlsdConfig,
    SftConfig,
    TrrdConfig,
)
from rlad.errors import ConfigError
from rlad.objectives.grpo import GrpoObjective
from rlad.objectives.kdrl import KdrlObjective
from rlad.objectives.objective import Objective
from rlad.objectives.opd import OpdObjective
from rlad.objectives.sft import SftObjective
from rlad.objectives.successors.eopd import EopdObjective
from rlad.objectives.successors.exopd import ExopdObjective
from rlad.objectives.successors.rlsd import RlsdObjective
from rlad.objectives.trrd import TrrdObjective

_OBJECTIVES: Mapping[type[ObjectiveSettings], type[Objective[Any]]] = {
    TrrdConfig: TrrdObjective,
    GrpoConfig: GrpoObjective,
    KdrlConfig: KdrlObjective,
    OpdConfig: OpdObjective,
    ExopdConfig: ExopdObjective,
    EopdConfig: EopdObjective,
    RlsdConfig: RlsdObjective,
    SftConfig: SftObjective,
}

_ADAPTER: TypeAdapter[ObjectiveSettings] = TypeAdapter(ObjectiveConfig)


def build_objective(config: Mapping[str, Any] | ObjectiveSettings) -> Objective[Any]:
    """Return the objective that a configuration describes. Unset settings have the paper's defaults.

    Args:
        config: A mapping such as `{"name": "trrd", "alpha": 0.5}`, or one of the settings models.

    Raises:
        ConfigError: An unknown objective, an unknown setting, or a value out of range. The message has one sentence per
            problem.
    """
    try:
        validated = _ADAPTER.validate_python(dict(config) if isinstance(config, Mapping) else config)
    except ValidationError as error:
        raise ConfigError("; ".join(_sentences(error))) from error
    return _OBJECTIVES[type(validated)](validated)


def _sentences(error: ValidationError) -> Iterator[str]:
    """Yield one sentence per problem."""
    for problem in error.errors():
        kind, location, value = problem["type"], [str(part) for part in problem["loc"]], problem["input"]
        if kind == "union_tag_invalid":
            yield f"unknown objective {problem['ctx']['tag']!r}: expected one of {problem['ctx']['expected_tags']}"
        elif kind == "union_tag_not_found":
            names = ", ".join(repr(name) for name in _settings_by_name())
            yield f"an objective needs a `name`, one of {names}; got {value!r}"
        elif kind == "extra_forbidden":
            name, key = location[0], location[-1]
            known = _settings_by_name()[name]
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"expected one of {', '.join(known)}"
            yield f"objective {name!r} has no setting `{key}`; {hint}"
        else:
            setting = ".".join(location) or "name"
            yield f"objective setting {setting}: {problem['msg'].removeprefix('Value error, ')} (got {value!r})"


def _settings_by_name() -> dict[str, list[str]]:
    union, _ = get_args(ObjectiveConfig)
    return {model.model_fields["name"].default: list(model.model_fields) for model in get_args(union)}
