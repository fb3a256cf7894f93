"""Strict, frozen configuration models, and pydantic's findings told in one line."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfuse.errors import ConfigError, unknown


class Config(BaseModel):
    """Root of every configuration model: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


C = TypeVar("C", bound=Config)
KINDS = ("float", "int", "str", "bool", "none")
"""What pydantic puts into the place of a finding in a union."""


def parse(model: type[C], values: Mapping[str, Any], where: str) -> C:
    """Check `values` against `model`; `where` names them in the error (`method.ties_merging`).

    Raises:
        ConfigError: one line for all findings, each with its place, what was found, and what it takes.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        findings: dict[str, str] = {}
        for found in error.errors(include_url=False):
            text = finding(model, where, dict(found))
            findings.setdefault(text.partition(": ")[0], text)  # of a union's members, the first complaint
        raise ConfigError(" · ".join(findings.values())) from None


def finding(model: type[Config], where: str, found: Mapping[str, Any]) -> str:
    """One pydantic finding as `where.key: what (found …)`."""
    keys = [str(key) for key in found["loc"] if not re.search(r"[\[(]", str(key)) and key not in KINDS]
    place = ".".join([where, *keys])
    if found["type"] == "extra_forbidden":
        *above, last = keys if keys and keys[-1] == found["loc"][-1] else [*keys, str(found["loc"][-1])]
        fields = fields_at(model, above)
        return f"{'.'.join([where, *above])}: " + (
            unknown("key", last, fields) if fields else f"unknown key {last!r}; it takes no settings"
        )
    if found["type"] == "missing":
        return f"{place}: is required"
    if found["type"] == "sequence_str":
        given = found["input"] if found["input"].isprintable() and len(found["input"]) < 80 else "…"
        return f"{place}: takes a list, as in {keys[-1] if keys else where}=[{given}]"
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: {message[:1].lower()}{message[1:]} (found {found['input']!r:.80})"


def fields_at(model: type[Config], keys: list[str]) -> list[str]:
    """Names of the fields of the model that `keys` lead to, through nesting and lists."""
    for key in keys:
        field = model.model_fields.get(key)
        if field is not None:
            inside = (field.annotation, *get_args(field.annotation))
            model = next((kind for kind in inside if isinstance(kind, type) and issubclass(kind, Config)), EmptyConfig)
        elif not key.isdigit():
            return []
    return list(model.model_fields)


class EmptyConfig(Config):
    """No settings."""


def example_settings(model: type[Config], required: bool = False) -> dict[str, Any]:
    """The first of `Field(examples=[…])` of every setting that has some; with `required` of those without default.

    A setting without default needs an example to be tried out, one whose default takes its time a quick one.
    """
    fields = model.model_fields.items()
    return {name: field.examples[0] for name, field in fields if field.examples and field.is_required() >= required}
