"""Generator of the configuration reference `docs/configuration.md` from the configuration models.

Run it with `make reference`, or `python -m rlad.config.reference > docs/configuration.md`.
"""

from __future__ import annotations

import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from rlad.config.comparison import CompareConfig, ConditionConfig, MethodConfig, TuneConfig
from rlad.config.evaluation import EvaluationSuite
from rlad.config.objective_options import ClippedSurrogateSettings, ObjectiveSettings
from rlad.config.prompts import PromptRows
from rlad.config.run import RunConfig
from rlad.config.schedule import (
    GateConfig,
    NotifyConfig,
    ProcessLauncherConfig,
    PromptRefresh,
    RayJobLauncherConfig,
    ScheduleConfig,
)
from rlad.config.teachers import TeacherConfig, TeacherHttpConfig, TeacherServiceFile

_INTRODUCTION = """\
A run is configured by one YAML file; see `configs/` for examples. Override any setting on the command line as \
`key=value`, with dots between section and key: `rlad run FILE learner.zero_stage=3`. Unknown keys are errors.

This page lists all settings by their full key. Settings that are `required` have no default. A default of `null` \
turns the setting off, or derives it from other settings, as the description says. A default of `{}` is a section with \
all of its defaults. Keys that end in `_s` are in seconds, keys that end in `_gib` or `_mib` in GiB or MiB.

This page is generated from the code by `make reference`.
"""
_RUN = "Settings of `rlad run`, and of the other commands that take a run's file."
_SUITE = (
    "`rlad eval` also accepts the file of a run, whose `evaluation` section is then the only set. Sections are those "
    "of a run, and each of `sets` is an [`evaluation`](#evaluation) section."
)
_PROSE_COLUMNS = 100
_KEPT_SPACE = "\x00"
# Keys that select a member of a union by their value, and by their presence.
_DISCRIMINATORS = ("name", "source")
_SELECTING_KEYS = ("service", "url")
_MAPPING_KEYS = {"verifiers": "TASK", "teachers": "ID", "parts": "NAME"}
# Base classes of several sections. Their settings are listed once, in a section of their own.
_SHARED_OPTIONS: dict[type[BaseModel], str] = {
    ObjectiveSettings: "`objective`: options of all objectives",
    ClippedSurrogateSettings: "`objective`: options of the objectives with a clipped ratio",
    PromptRows: "`prompts`: options of `file` and `hub`",
}
_TYPE_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", Any: "any", AwareDatetime: "time"}


@dataclass(slots=True)
class _Page:
    """Lines of the page, and the heading under which each model is documented."""

    lines: list[str] = field(default_factory=list)
    headings: dict[type[BaseModel], str] = field(default_factory=dict)

    def add_heading(self, level: int, title: str, *models: type[BaseModel]) -> None:
        self.lines += [f"{'#' * level} {title}", ""]
        self.headings |= dict.fromkeys(models, title)

    def add_prose(self, text: str) -> None:
        self.lines += [*_wrapped(text), ""]

    def add_table(self, *parts: tuple[str, type[BaseModel]]) -> None:
        """Add one table with the settings of several models, each with the prefix of its keys."""
        self.lines += ["| Setting | Type | Default | Description |", "| --- | --- | --- | --- |"]
        self.lines += [row for prefix, model in parts for row in self._rows(prefix, model)]
        self.lines.append("")

    def _rows(self, prefix: str, model: type[BaseModel]) -> Iterator[str]:
        for name, info in _listed_fields(model):
            cells = (f"`{prefix}{name}`", self._type(info.annotation, info.metadata), _default(name, info))
            yield f"| {' | '.join(cells)} | {(info.description or '').replace('|', chr(92) + '|')} |"

    def _type(self, annotation: Any, metadata: list[Any]) -> str:
        """Return a type as users read it, with links to the sections of models."""
        bounds = ",".join(filter(None, map(_bound, metadata)))
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self._type(arguments[0], list(arguments[1:]))
        if origin is Literal:
            return " \\| ".join(f"`{value}`" for value in arguments)
        if origin in (Union, types.UnionType):
            kinds = [
                "`null`" if argument is types.NoneType else self._type(argument, metadata) for argument in arguments
            ]
            return " \\| ".join(dict.fromkeys(kinds))
        if origin is dict:
            return f"map of {self._type(arguments[0], [])} to {self._type(arguments[1], [])}"
        if origin in (list, tuple):
            return f"list of {self._type(arguments[0], [])}"
        if _is_model(annotation):
            heading = self.headings.get(annotation)
            return f"[{_label(annotation)}](#{_anchor(heading)})" if heading else "section"
        return _TYPE_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation))) + bounds


def reference() -> str:
    """Return the page with all settings as Markdown."""
    # The first pass collects the headings, so that tables can link to sections that follow them.
    headings = _page({}).headings
    return "\n".join(_page(headings).lines)


def _page(headings: dict[type[BaseModel], str]) -> _Page:
    page = _Page(headings=dict(headings))
    page.add_heading(1, "Configuration")
    page.lines += [line for paragraph in _INTRODUCTION.split("\n\n") for line in [*_wrapped(paragraph), ""]]
    page.add_heading(2, "Run (`rlad run FILE`)")
    page.add_prose(_RUN)
    page.add_table(("", RunConfig))
    _add_sections(page, "", RunConfig, seen=set())
    page.add_heading(2, "Evaluation suite (`rlad eval --config FILE`)")
    _add_docstring(page, EvaluationSuite)
    page.add_prose(_SUITE)
    page.add_table(("", EvaluationSuite))
    page.add_heading(2, "Comparison (`rlad compare FILE`)", MethodConfig, ConditionConfig, TuneConfig)
    _add_docstring(page, CompareConfig)
    page.add_table(
        ("", CompareConfig),
        ("methods.NAME.", MethodConfig),
        ("conditions.NAME.", ConditionConfig),
        ("tune.", TuneConfig),
    )
    page.add_heading(2, "Teacher service (`rlad teacher deploy FILE`)", TeacherHttpConfig)
    _add_docstring(page, TeacherServiceFile)
    page.add_table(("", TeacherServiceFile), ("http.", TeacherHttpConfig))
    launchers = (ProcessLauncherConfig, RayJobLauncherConfig)
    page.add_heading(2, "Schedule (`rlad schedule add`)", PromptRefresh, NotifyConfig, GateConfig, *launchers)
    _add_docstring(page, ScheduleConfig)
    parts = (("", ScheduleConfig), ("prompts.", PromptRefresh), ("notify.", NotifyConfig))
    gates = ("gates.GATE.", GateConfig)
    page.add_table(*parts, gates, ("launcher.", RayJobLauncherConfig))
    return page


def _add_sections(page: _Page, prefix: str, model: type[BaseModel], *, seen: set[type[BaseModel]]) -> None:
    """Add a section for each model in the fields of `model`. A model that several fields share has one section."""
    for name, info in _listed_fields(model):
        is_mapping = get_origin(info.annotation) is dict
        key = f"{prefix}{name}.{_MAPPING_KEYS.get(name, 'KEY')}" if is_mapping else f"{prefix}{name}"
        for section in _models(info.annotation):
            if section in seen:
                continue
            seen.add(section)
            bases = _shared_bases(section)
            for base in bases:
                if base not in seen:
                    seen.add(base)
                    _add_section(page, key, _SHARED_OPTIONS[base], base, seen=seen)
            _add_section(page, key, f"`{key}`{_variant(section)}", section, seen=seen)


def _add_section(page: _Page, key: str, title: str, model: type[BaseModel], *, seen: set[type[BaseModel]]) -> None:
    page.add_heading(3, title, model)
    _add_docstring(page, model)
    if titles := [_SHARED_OPTIONS[base] for base in _shared_bases(model)]:
        links = " and ".join(f"[{title.partition(': ')[2]}](#{_anchor(title)})" for title in titles)
        page.add_prose(f"The {links} also apply.")
    page.add_table((f"{key}.", model))
    _add_sections(page, f"{key}.", model, seen=seen)


def _shared_bases(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the base classes of a model that have a section of their own, the most general first."""
    return [base for base in _SHARED_OPTIONS if base is not model and issubclass(model, base)]


def _listed_fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the fields to list in a model's table: all except those of its shared bases."""
    inherited = {name for base in _shared_bases(model) for name in base.model_fields}
    for name, info in model.model_fields.items():
        is_abstract_name = name == "name" and model in _SHARED_OPTIONS
        if not is_abstract_name and (name not in inherited or name in model.__annotations__):
            yield name, info


def _add_docstring(page: _Page, model: type[BaseModel]) -> None:
    for paragraph in textwrap.dedent(f"    {model.__doc__ or ''}").strip().split("\n\n"):
        page.add_prose(paragraph)


def _wrapped(text: str) -> list[str]:
    """Return prose wrapped to the page's width, without breaks inside code spans."""
    text = re.sub(r"`[^`]+`", lambda span: span[0].replace(" ", _KEPT_SPACE), " ".join(text.split()))
    lines = textwrap.wrap(text, _PROSE_COLUMNS, break_long_words=False, break_on_hyphens=False)
    return [line.replace(_KEPT_SPACE, " ") for line in lines]


def _anchor(heading: str) -> str:
    """Return the anchor of a heading, as both mkdocs and GitHub derive it."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _variant(model: type[BaseModel]) -> str:
    """Return the setting that selects this member of a union, as part of its heading."""
    for key in _DISCRIMINATORS:
        if (value := _discriminator(model, key)) is not None:
            return f" with `{key}: {value}`"
    return next((f" with `{key}`" for key in _SELECTING_KEYS if key in model.model_fields), "")


def _label(model: type[BaseModel]) -> str:
    """Return the text of a link to a model's section: what selects the model in a union, if it is in one."""
    values = [value for key in _DISCRIMINATORS if (value := _discriminator(model, key)) is not None]
    values += [key for key in _SELECTING_KEYS if key in model.model_fields]
    if not values and model is TeacherConfig:
        values = ["path"]
    return f"`{values[0]}`" if values else "section"


def _discriminator(model: type[BaseModel], key: str) -> str | None:
    info = model.model_fields.get(key)
    if info is None or get_origin(info.annotation) is not Literal:
        return None
    return str(get_args(info.annotation)[0])


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if _is_model(annotation):
        yield annotation
        return
    for argument in get_args(annotation):
        yield from _models(argument)


def _is_model(annotation: Any) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _bound(item: Any) -> str:
    if isinstance(item, FieldInfo):
        return ",".join(filter(None, map(_bound, item.metadata)))
    for kind, sign, name in ((Ge, "≥", "ge"), (Gt, ">", "gt"), (Le, "≤", "le"), (Lt, "<", "lt")):
        if isinstance(item, kind):
            return f" {sign} {getattr(item, name)}"
    return ""


def _default(name: str, info: FieldInfo) -> str:
    is_discriminator = name in _DISCRIMINATORS and get_origin(info.annotation) is Literal
    if info.is_required() or is_discriminator:
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "`{}`"
    if isinstance(value, list) and any(isinstance(each, BaseModel) for each in value):
        return f"`[{', '.join(each.name for each in value)}]`"
    return f"`{value if isinstance(value, str | float) and not isinstance(value, bool) else json.dumps(value)}`"


if __name__ == "__main__":
    print(reference(), end="")
