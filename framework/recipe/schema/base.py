"""What every section of a recipe shares: frozen, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of recipe fields. An unknown key is an error, and so is a value of another type: true is no
    number, "3" neither; only a whole number may stand for a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)
