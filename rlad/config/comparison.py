"""Configuration of a comparison: the settings of a base run, and the overrides of each method."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, field_validator, model_validator

from rlad.config.base import ConfigModel, Fraction, PositiveInt
from rlad.config.load import read_settings, resolved, validated, with_overrides
from rlad.config.prompts import PromptSource
from rlad.config.run import RunConfig
from rlad.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)]
# Sections that methods must share, so that a difference in accuracy comes from the method alone.
_MUST_BE_EQUAL = ("student", "evaluation", "verifiers", "cluster")
_RESERVED = ("worst", "tuning")


class MethodConfig(ConfigModel):
    """A method: overrides of the base run."""

    overrides: dict[str, Any] = Field(
        {},
        description="Settings by dotted key, for example `training.steps: 12`. A mapping replaces the base's "
        "mapping as a whole.",
    )
    search: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {},
        description="Values to try, by dotted key, for example `objective.beta: [0.03, 0.1, 0.3]`. Required for every "
        "method if there is a `tune` section.",
    )

    @property
    def grid(self) -> list[dict[str, Any]]:
        """All combinations of the values to try."""
        return [dict(zip(self.search, values, strict=True)) for values in itertools.product(*self.search.values())]


class ConditionConfig(ConfigModel):
    """A condition under which the methods are compared, such as a teacher: overrides of the base run."""

    overrides: dict[str, Any] = Field(
        description="Settings by dotted key, for example `teacher.path: starter:kk/teacher`. Those of a method take "
        "precedence."
    )


class TuneConfig(ConfigModel):
    """Search of each method's settings before the runs, with the same number of trials for each.

    A trial is a run with values of `search` that are drawn without replacement from all combinations. It is evaluated
    on prompts that no final evaluation has, and the best trial's values are those of the method's runs.
    """

    trials: PositiveInt = Field(description="Trials per method and condition, at most the method's combinations.")
    prompts: PromptSource = Field(
        description="Validation prompts. Trials leave them out of their training; they must not be evaluation prompts."
    )
    trial_seed: int = Field(1000, description="Seed of the drawn values and of the trial runs; none of `seeds`.")


class CompareConfig(ConfigModel):
    """Comparison of several methods over several seeds, all starting from the same student."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] = Field(
        description="Name of the comparison. The default directory is `runs/NAME`."
    )
    base: str | dict[str, Any] = Field(
        description="Base run: path of its YAML file, relative to this file, or its settings."
    )
    overrides: dict[str, Any] = Field({}, description="Overrides of the base run for all methods, by dotted key.")
    methods: Annotated[dict[Name, MethodConfig], Field(min_length=1)] = Field(
        description="Methods by name. The first is the reference that the others are compared with."
    )
    conditions: dict[Name, ConditionConfig] = Field(
        {},
        description="Conditions by name, for example one per teacher. Each method that uses a teacher runs under each "
        "of them; the report adds the worst condition of each run.",
    )
    tune: TuneConfig | None = Field(None, description="Tuning of the methods before their runs; null means none.")
    seeds: list[int] = Field([0], min_length=1, description="Seeds. Each method runs once per seed.")
    margin: Fraction = Field(
        0.02,
        description="Largest difference in accuracy that does not matter in practice. Two methods are equal if the "
        "confidence interval of their difference lies within it.",
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_are_unique(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be unique, because a repeated run is no new observation; got {seeds}")
        return seeds

    @field_validator("conditions")
    @classmethod
    def _names_are_free(cls, conditions: dict[str, ConditionConfig]) -> dict[str, ConditionConfig]:
        if taken := [name for name in _RESERVED if name in conditions]:
            raise ValueError(f"condition name {taken[0]!r} is reserved for the report; choose another one")
        return conditions

    @model_validator(mode="after")
    def _budgets_are_equal(self) -> Self:
        if self.tune is None:
            return self
        if self.tune.trial_seed in self.seeds:
            raise ValueError(
                f"tune.trial_seed must not be one of seeds, whose runs are to be fresh; got {self.tune.trial_seed}"
            )
        for name, method in self.methods.items():
            combinations = len(method.grid) if method.search else 0
            if combinations < self.tune.trials:
                raise ValueError(
                    f"tune.trials is {self.tune.trials} for every method; methods.{name}.search has {combinations} "
                    "combinations. Add values, or lower tune.trials"
                )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run of a comparison: one method with one seed, under one condition.

    Attributes:
        method: Name of the method.
        seed: Seed of the run.
        config: Settings of the run.
        condition: Name of the condition; None if there are none, or if the method does not depend on them because it
            uses no teacher.
    """

    method: str
    seed: int
    config: RunConfig
    condition: str | None = None

    @property
    def name(self) -> str:
        """Name of the run, and of its directory in that of its condition."""
        return f"{self.method}-seed{self.seed}"

    @property
    def label(self) -> str:
        """Name of the run in messages."""
        return self.name if self.condition is None else f"{self.condition}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTrial(PlannedRun):
    """A trial run: a method with values of its search space.

    Attributes:
        number: Number of the trial, from 1.
        parameters: Values by dotted key.
    """

    number: int
    parameters: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the run, and of its directory in that of its condition."""
        return f"{self.method}-trial{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Validated comparison, ready to run.

    Attributes:
        config: Configuration, with the base run's settings in `base`.
        runs: All methods of the first seed, then of the next seed, so that an interrupted comparison has complete
            seeds. Before the tuning they have the first values of each search space.
        trials: Trial runs; empty without a `tune` section.
        changes: Dotted `key=value` settings of every run.
        where: File of the comparison, for messages.
    """

    config: CompareConfig
    runs: tuple[PlannedRun, ...]
    trials: tuple[PlannedTrial, ...] = ()
    changes: tuple[str, ...] = ()
    where: str = "the comparison"

    def tuned(self, chosen: Mapping[tuple[str, str | None], Mapping[str, Any]]) -> Comparison:
        """Return the comparison with the chosen values, by method and condition, in its runs."""
        return replace(
            self,
            runs=tuple(
                replace(
                    run,
                    config=_run_config(
                        self.config,
                        run.method,
                        run.seed,
                        self.changes,
                        where=self.where,
                        condition=run.condition,
                        parameters=chosen[run.method, run.condition],
                    ),
                )
                for run in self.runs
            ),
        )

    def under(self, condition: str) -> tuple[PlannedRun, ...]:
        """Return the runs that count for a condition: its own, and those of methods that do not depend on it."""
        return tuple(run for run in self.runs if run.condition in (condition, None))


def load_comparison(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Comparison:
    """Read a comparison and validate each of its runs.

    Args:
        path: YAML file.
        overrides: Dotted `key=value` settings applied to every run. They take precedence over the file.
        methods: Methods to run, in this order; default: all.
        seeds: Seeds to run instead of those in the file.

    Raises:
        ConfigError: A setting is invalid (the message names the method), or methods differ in student, evaluation,
            verifiers or cluster.
    """
    path = Path(path)
    config = validated(CompareConfig, read_settings(path), where=str(path))
    base = config.base if isinstance(config.base, dict) else read_settings(path.parent / config.base)
    chosen = config.methods if methods is None else _chosen(config.methods, methods)
    config = validated(
        CompareConfig,
        {
            **config.model_dump(),
            "base": base,
            "methods": chosen,
            "seeds": config.seeds if seeds is None else list(seeds),
        },
        where=str(path),
    )
    places = [(method, condition) for method in config.methods for condition in _conditions(config, method, overrides)]
    runs = tuple(
        PlannedRun(
            method=method,
            seed=seed,
            condition=condition,
            config=_run_config(config, method, seed, overrides, where=f"{path}, method {method}", condition=condition),
        )
        for seed in config.seeds
        for method, condition in places
    )
    for key in _MUST_BE_EQUAL:
        different = [run.method for run in runs if getattr(run.config, key) != getattr(runs[0].config, key)]
        if different:
            raise ConfigError(
                f"{path}: compared methods must have the same `{key}`; methods {runs[0].method} and {different[0]} "
                "differ"
            )
    trials = tuple(
        trial
        for method, condition in places
        for trial in _trials(config, method, condition, overrides, where=f"{path}, method {method}")
    )
    return Comparison(config=config, runs=runs, trials=trials, changes=tuple(overrides), where=str(path))


def _conditions(config: CompareConfig, method: str, overrides: Sequence[str]) -> list[str | None]:
    """Return the conditions of a method: all, or none for one that uses no teacher."""
    if not config.conditions:
        return [None]
    alone = _run_config(config, method, config.seeds[0], overrides, where=f"method {method}")
    return list(config.conditions) if alone.needs_teacher else [None]


def _trials(
    config: CompareConfig, method: str, condition: str | None, overrides: Sequence[str], *, where: str
) -> list[PlannedTrial]:
    """Return the trials of a method under a condition. The drawn values are the same under every condition."""
    tune = config.tune
    if tune is None:
        return []
    drawn = random.Random(f"trials:{tune.trial_seed}:{method}").sample(config.methods[method].grid, tune.trials)
    found = []
    for number, parameters in enumerate(drawn, start=1):
        plain = _run_config(
            config, method, tune.trial_seed, overrides, where=where, condition=condition, parameters=parameters
        )
        evaluation = plain.evaluation.model_copy(update={"prompts": tune.prompts, "overlap": "drop_training"})
        found.append(
            PlannedTrial(
                method=method,
                seed=tune.trial_seed,
                condition=condition,
                number=number,
                parameters=parameters,
                config=plain.model_copy(update={"name": f"{method}-trial{number}", "evaluation": evaluation}),
            )
        )
    return found


def _chosen(methods: Mapping[str, MethodConfig], names: Sequence[str]) -> dict[str, MethodConfig]:
    unknown = [name for name in names if name not in methods]
    if unknown or len(set(names)) < len(names):
        raise ConfigError(
            f"unknown method {', '.join(unknown)}; expected one of {', '.join(methods)}"
            if unknown
            else f"methods must be unique; got {', '.join(names)}"
        )
    return {name: methods[name] for name in names}


def _run_config(
    config: CompareConfig,
    method: str,
    seed: int,
    overrides: Sequence[str],
    *,
    where: str,
    condition: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Return the settings of a run. Without parameters, a searched setting has its first value."""
    own = config.methods[method]
    changes = [
        *config.overrides.items(),
        *(config.conditions[condition].overrides.items() if condition is not None else ()),
        *own.overrides.items(),
        *(parameters or own.grid[0]).items(),
        ("name", f"{method}-seed{seed}"),
        ("seed", seed),
    ]
    settings = OmegaConf.create(config.base)
    try:
        for key, value in changes:
            OmegaConf.update(settings, key, value, merge=False)
        return validated(RunConfig, resolved(with_overrides(settings, overrides), where=where), where=where)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {error}") from error
