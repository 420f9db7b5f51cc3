"""What every section of a recipe shares: frozen, and closed to unknown keys."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of recipe fields. An unknown key is an error, and so is a value of another type: true is no
    number, "3" neither; only a whole number may stand for a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


def _emptied(value: Any) -> Any:
    return {} if value is None else value


NullEmpties = BeforeValidator(_emptied)
"""Marks a mapping that null empties; without it a file could only add to what it extends."""

Tags = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(lambda value: () if value is None else value)
]
"""Words; null empties what a file would inherit."""
