"""The configuration of a comparison: one run's settings, and how each method differs from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, field_validator

from rlad.config.base import ConfigModel, Fraction
from rlad.config.load import read_settings, validated
from rlad.config.run import RunConfig
from rlad.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)]
# What a difference between two methods must not come from: the start, what is measured, and how.
_MUST_BE_EQUAL = ("student", "evaluation", "verifiers", "cluster")


class MethodConfig(ConfigModel):
    """One method: what it changes in the base."""

    overrides: dict[str, Any] = Field(
        {}, description="Settings by dotted key, as `training.steps: 12`. A mapping replaces what stood there."
    )


class CompareConfig(ConfigModel):
    """Several methods over several seeds, from one start."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    base: str | dict[str, Any] = Field(
        description="A run's YAML file, its path seen from this file; or a run's settings themselves."
    )
    overrides: dict[str, Any] = Field({}, description="The same for all methods.")
    methods: Annotated[dict[Name, MethodConfig], Field(min_length=1)] = Field(
        description="Methods by a free name, each a set of changes. The first is what the others are compared with."
    )
    seeds: list[int] = Field([0], min_length=1)
    margin: Fraction = Field(
        0.02, description="A difference of accuracy too small to matter: an interval inside it counts as equal."
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is named twice: a run repeated is not another observation")
        return seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of a comparison."""

    method: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Of the run and its directory."""
        return f"{self.method}-seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A comparison ready to run.

    Attributes:
        config: as it was read, `base` being the settings themselves.
        runs: all methods of the first seed, then of the next: one that is cut short compares what it has.
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
    """Read a comparison and validate every run of it.

    Args:
        overrides: dotted `key=value` settings of every run, which win over the file's.
        methods: only these, in this order.
        seeds: instead of the file's.

    Raises:
        ConfigError: what is wrong, and in which method; or methods that do not share student, evaluation, verifiers and cluster.
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
                f"{path}: method {different[0]} has another `{key}` than {runs[0].method}: methods that are compared must share it"
            )
    return Comparison(config=config, runs=runs)


def _chosen(methods: Mapping[str, MethodConfig], names: Sequence[str]) -> dict[str, MethodConfig]:
    unknown = [name for name in names if name not in methods]
    if unknown or len(set(names)) < len(names):
        raise ConfigError(
            f"no method {', '.join(unknown)}: there are {', '.join(methods)}"
            if unknown
            else f"a method is named twice: {', '.join(names)}"
        )
    return {name: methods[name] for name in names}


def _run_config(config: CompareConfig, method: str, seed: int, overrides: Sequence[str], *, where: str) -> RunConfig:
    changes = {**config.overrides, **config.methods[method].overrides, "name": f"{method}-seed{seed}", "seed": seed}
    settings = OmegaConf.create(config.base)
    try:
        for key, value in changes.items():
            OmegaConf.update(settings, key, value, merge=False)
        merged = OmegaConf.merge(settings, OmegaConf.from_dotlist(list(overrides)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {error}") from error
    return validated(RunConfig, OmegaConf.to_container(merged, resolve=True), where=where)
