"""What a recipe's author did wrong, told in one line that begins with where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from framework.errors import UserError


@dataclass(frozen=True)
class Origin:
    """Where a value came from: a file and line (counted from 1), or a phrase such as "default" or "command line"."""

    place: str
    line: int | None = None

    def __str__(self) -> str:
        return self.place if self.line is None else f"{self.place}:{self.line}"


DEFAULT = Origin("default")
COMMAND_LINE = Origin("command line")


class RecipeError(UserError):
    """`keys` are the dotted keys concerned, the first one first; the text says what was given and what is allowed."""

    def __init__(self, keys: str | tuple[str, ...], text: str, origin: Origin | None = None) -> None:
        self.keys = (keys,) if isinstance(keys, str) else keys
        self.text = text
        where = f"{origin}: " if origin else ""
        subject = " and ".join(key for key in self.keys if key)
        super().__init__(where + (f"{subject}: " if subject else "") + text)

    def located(self, origins: Mapping[str, Origin], fallback: Origin) -> RecipeError:
        """The same error, with the place of the latest-stated key in front and every other place beside its key."""
        places = [_place(origins, key) for key in self.keys]
        known = [place for place in places if place not in (None, DEFAULT)]
        first = COMMAND_LINE if COMMAND_LINE in known else (known or [fallback])[0]
        keys = tuple(
            f"{key} ({place})" if place in known and place != first else key
            for key, place in zip(self.keys, places, strict=True)
        )
        return RecipeError(keys, self.text, first)


def _place(origins: Mapping[str, Origin], key: str) -> Origin | None:
    """Where a key was stated, or else the section around it."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key)


def shorten(value: object, width: int = 60) -> str:
    """A value as a message quotes it: text in quotes, the rest as YAML has it."""
    text = _spelled(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def _spelled(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spelled, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_spelled(inner)}' for key, inner in value.items())}}}"
    return repr(value)
