"""Configuration of a comparison: the settings of a base run, and the overrides of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, field_validator

from rlad.config.base import ConfigModel, Fraction
from rlad.config.load import read_settings, resolved, validated
from rlad.config.run import RunConfig
from rlad.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)]
# Sections that methods must share, so that a difference in accuracy comes from the method alone.
_MUST_BE_EQUAL = ("student", "evaluation", "verifiers", "cluster")


class MethodConfig(ConfigModel):
    """A method: overrides of the base run."""

    overrides: dict[str, Any] = Field(
        {},
        description="Settings by dotted key, for example `training.steps: 12`. A mapping replaces the base's "
        "mapping as a whole.",
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run of a comparison: one method with one seed."""

    method: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of the run and of its directory."""
        return f"{self.method}-seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Validated comparison, ready to run.

    Attributes:
        config: Configuration, with the base run's settings in `base`.
        runs: All methods of the first seed, then of the next seed, so that an interrupted comparison has complete
            seeds.
    """

    config: CompareConfig
    runs: tuple[PlannedRun, ...]


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
    runs = tuple(
        PlannedRun(
            method=method,
            seed=seed,
            config=_run_config(config, method, seed, overrides, where=f"{path}, method {method}"),
        )
        for seed in config.seeds
        for method in config.methods
    )
    for key in _MUST_BE_EQUAL:
        different = [run.method for run in runs if getattr(run.config, key) != getattr(runs[0].config, key)]
        if different:
            raise ConfigError(
                f"{path}: compared methods must have the same `{key}`; methods {runs[0].method} and {different[0]} "
                "differ"
            )
    return Comparison(config=config, runs=runs)


def _chosen(methods: Mapping[str, MethodConfig], names: Sequence[str]) -> dict[str, MethodConfig]:
    unknown = [name for name in names if name not in methods]
    if unknown or len(set(names)) < len(names):
        raise ConfigError(
            f"unknown method {', '.join(unknown)}; expected one of {', '.join(methods)}"
            if unknown
            else f"methods must be unique; got {', '.join(names)}"
        )
    return {name: methods[name] for name in names}


def _run_config(config: CompareConfig, method: str, seed: int, overrides: Sequence[str], *, where: str) -> RunConfig:
    changes = {**config.overrides, **config.methods[method].overrides, "name": f"{method}-seed{seed}", "seed": seed}
    settings = OmegaConf.create(config.base)
    try:
        for key, value in changes.items():
            OmegaConf.update(settings, key, value, merge=False)
        merged = OmegaConf.merge(settings, OmegaConf.from_dotlist(list(overrides)))
        return validated(RunConfig, resolved(merged, where=where), where=where)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {error}") from error
