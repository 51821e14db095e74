"""The configuration reference, made from the models: `python -m rlad.config.reference > docs/configuration.md` (or `make reference`)."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rlad.config.comparison import CompareConfig, MethodConfig
from rlad.config.evaluation import EvaluationSuite
from rlad.config.run import RunConfig
from rlad.config.schedule import NotifyConfig, PromptRefresh, ScheduleConfig
from rlad.config.teachers import TeacherHttpConfig, TeacherServiceFile

_INTRODUCTION = """# Configuration

A run is one YAML file (see `configs/`). Any setting can be given on the command line as `key=value`, with dots: `rlad run FILE learner.zero_stage=3`.
A key that is not listed here is refused. This page is made from the code by `make reference`.
"""

# Of sections that are one of several kinds by the key that they have.
_CHOOSING_KEYS = ("service", "url")
# What the keys of a mapping of sections are.
_MAPPING_KEYS = {"verifiers": ".TASK", "teachers": ".ID"}


def reference() -> str:
    """All settings as Markdown, a table a section."""
    return "\n".join(
        [
            _INTRODUCTION,
            *_sections("", RunConfig),
            *_heading("Evaluation sets (`rlad eval --config FILE`)", EvaluationSuite),
            *_table("", EvaluationSuite),
            "\nSections are as in a run; each of `sets` is an `evaluation` section.\n",
            *_heading("Comparison (`rlad compare FILE`)", CompareConfig),
            *_table("", CompareConfig),
            *_table("methods.NAME.", MethodConfig, is_continued=True),
            "",
            *_heading("Teacher service (`rlad teacher deploy FILE`)", TeacherServiceFile),
            *_table("", TeacherServiceFile),
            *_table("http.", TeacherHttpConfig, is_continued=True),
            "",
            *_heading("Schedule (`rlad schedule add`)", ScheduleConfig),
            *_table("", ScheduleConfig),
            *_table("prompts.", PromptRefresh, is_continued=True),
            *_table("notify.", NotifyConfig, is_continued=True),
            "",
        ]
    )


def _sections(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    yield from _heading(prefix.rstrip(".") or "Top level", model)
    yield from _table(prefix, model)
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        models = list(_models(field.annotation))
        is_mapping = get_origin(field.annotation) is dict
        for submodel in models:
            label = f"{prefix}{name}{_MAPPING_KEYS[name] if is_mapping else ''}"
            nested.append((label, submodel))
    yield ""
    for label, submodel in nested:
        yield from (
            _sections(f"{label}{_variant(submodel)}.", submodel)
            if not _variant(submodel)
            else _variant_section(label, submodel)
        )


def _heading(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {title}\n"
    if model.__doc__ and model is not RunConfig:
        yield f"{' '.join(model.__doc__.split())}\n"


def _table(prefix: str, model: type[BaseModel], *, is_continued: bool = False) -> Iterator[str]:
    if not is_continued:
        yield "| key | type | default | what it is |\n| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        yield f"| `{prefix}{name}` | {_type_name(field.annotation, field.metadata)} | {_default(field)} | {field.description or ''} |"


def _variant_section(label: str, model: type[BaseModel]) -> Iterator[str]:
    lines = list(_sections(f"{label}.", model))
    yield lines[0].replace("\n", f" {_variant(model)}\n")
    yield from lines[1:]


def _variant(model: type[BaseModel]) -> str:
    """For a member of a union, the setting that chooses it."""
    for key in ("name", "source"):
        field = model.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return f"(`{key}: {get_args(field.annotation)[0]}`)"
    return next((f"(`{key}: ...`)" for key in _CHOOSING_KEYS if key in model.model_fields), "")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for argument in get_args(annotation):
        yield from _models(argument)


def _type_name(annotation: Any, metadata: list[Any]) -> str:
    bounds = "".join(_bound(item) for item in metadata)
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        return _type_name(inner, extra)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " \\| ".join(_type_name(member, []) for member in get_args(annotation)) + bounds
    if origin in (dict, tuple, list):
        return f"{origin.__name__}[{', '.join(_type_name(argument, []) for argument in get_args(annotation))}]"
    if annotation is type(None):
        return "none"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return typing.cast(str, getattr(annotation, "__name__", str(annotation))) + bounds


def _bound(item: Any) -> str:
    if isinstance(item, FieldInfo):
        return "".join(_bound(inner) for inner in item.metadata)
    for kind, sign, name in ((Ge, "≥", "ge"), (Gt, ">", "gt"), (Le, "≤", "le"), (Lt, "<", "lt")):
        if isinstance(item, kind):
            return f" {sign} {getattr(item, name)}"
    return ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(reference(), end="")
