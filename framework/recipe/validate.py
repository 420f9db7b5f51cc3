"""Pydantic's findings as one line: the key, what was given, what is allowed, the nearest valid key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from framework.errors import nearest
from framework.recipe.errors import RecipeError, shorten
from framework.recipe.schema import Section

S = TypeVar("S", bound=Section)


def validate(section: type[S], values: Mapping[str, Any], prefix: str = "") -> S:
    """Build a section from plain values. Raises RecipeError for the first unknown key, else the first bad value."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        findings = error.errors(include_url=False)
        finding = next((each for each in findings if each["type"] == "extra_forbidden"), findings[0])
        raise _explain(section, finding, prefix) from None


def _explain(section: type[Section], finding: Mapping[str, Any], prefix: str) -> RecipeError:
    path = [part for part in finding["loc"] if part != "[key]"]
    key = join(prefix, *path)
    if finding["type"] == "extra_forbidden":
        siblings = _fields_at(section, path[:-1])
        hint = nearest(str(path[-1]), siblings) or _elsewhere(section, str(path[-1]))
        return RecipeError(key, f"unknown key{hint}; allowed: {', '.join(siblings)}")
    allowed = finding["msg"].removeprefix("Input should be ").removeprefix("Input should ").replace("tuple", "list")
    if finding["type"] == "missing":
        return RecipeError(key, "missing; allowed: a value must be given")
    if finding["type"] == "model_type":
        allowed = f"a section with the keys {', '.join(_fields_at(section, path))}"
    if finding["type"] == "invalid_key":
        return RecipeError(key, f"unknown key; allowed: {', '.join(_fields_at(section, path[:-1]))}")
    return RecipeError(key, f"given {shorten(finding['input'])}; allowed: {allowed}")


def join(*parts: Any) -> str:
    """A dotted key, empty parts left out."""
    return ".".join(str(part) for part in parts if part != "")


def _fields_at(section: type[BaseModel], path: list[Any]) -> list[str]:
    for part in path:
        section = _inner(section.model_fields[part].annotation) if part in section.model_fields else section
    return list(section.model_fields)


def _inner(annotation: Any) -> type[BaseModel]:
    """The section inside an annotation such as `RopeScaling | None` or `dict[str, RelativeLR]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_inner(argument) for argument in getattr(annotation, "__args__", ())]
    return next((inner for inner in found if inner is not BaseModel), BaseModel)


def _elsewhere(section: type[BaseModel], word: str) -> str:
    """A key of that name in another section, for one who forgot or mistook the section."""
    keys = {key.rpartition(".")[2]: key for key in schema_keys(section)}
    return f"; nearest: {keys[word]}" if word in keys else nearest(word, keys.values())


def schema_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted key of every field, sections' own keys left out."""
    keys = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, BaseModel)
        keys += schema_keys(inner, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return keys
