"""The runs that one recipe asks for: the trunk, then every slide that branches off it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framework.errors import UserError
from framework.files import is_plain_name
from framework.recipe.errors import COMMAND_LINE
from framework.recipe.yaml_reader import read_yaml
from framework.training.run_folder import Admission, admit, is_begun
from framework.training.slides import Slide, list_slides, slide_recipe

if TYPE_CHECKING:
    from framework.recipe import Loaded

TRUNK_ALONE = "none"


@dataclass(frozen=True)
class Part:
    """A run: its own recipe and folder; for a slide, what it is and the run that it branches off, else None."""

    loaded: Loaded
    path: Path
    slide: Slide | None = None
    trunk: Part | None = None


def parts_of(loaded: Loaded, path: Path, only: str | None = None) -> tuple[Part, ...]:
    """The runs of a recipe in the order in which they are trained; without slides one.

    path: the trunk's run folder; slides stand beside it. only: the length of one slide as a recipe would state it, or
    "none" for the trunk alone; None: all. Raises UserError for another value, and for names that cannot be folders'.
    """
    trunk = Part(loaded, path)
    slides = [Part(slide_recipe(loaded, slide), path.with_name(slide.name), slide, trunk)
              for slide in list_slides(loaded, path.name)]
    for part in slides:
        if not is_plain_name(part.path.name):
            raise UserError(f"--name {path.name!r}: too long for the name of its slide {part.path.name!r}; allowed: a "
                            "shorter one")
    if only is None:
        return (trunk, *slides)
    if only == TRUNK_ALONE:
        return (trunk,)
    chosen = [part for part in slides if part.slide.length == _number(only)]
    if not chosen:
        lengths = ", ".join(str(part.slide.length) for part in slides)
        raise UserError(f"--slide {only}: no slide of this recipe; allowed: {TRUNK_ALONE}"
                        + (f", {lengths}" if lengths else " (training.slides is empty)"))
    return tuple(chosen)


def admit_parts(parts: tuple[Part, ...], resume: bool) -> Admission:
    """Decide whether the runs may use their folders; changes nothing. FINISHED where all of them are.

    Raises UserError as `admit` does, and for a slide alone whose trunk is another run or has not come so far.
    """
    admissions = {admit(part.path, part.loaded, resume) for part in parts}
    first = parts[0]
    if first.trunk is not None and not is_begun(first.path):
        from framework.training.branch import require_branch

        admit(first.trunk.path, first.trunk.loaded, resume=True)
        require_branch(first.trunk.path, first.slide)
    return admissions.pop() if len(admissions) == 1 else Admission.RESUMED


def under_way(parts: tuple[Part, ...]) -> Part:
    """The first run that is not finished, or the last one."""
    return next((part for part in parts if not (part.path / "DONE").exists()), parts[-1])


def _number(text: str) -> object:
    """A number as a recipe writes it: 1e9 is a whole one."""
    try:
        return read_yaml(text, COMMAND_LINE.place, 0, numbered=False).value
    except UserError:
        return text
