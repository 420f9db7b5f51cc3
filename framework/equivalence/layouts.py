"""Names of layouts: `tp2`, `dp_shard2xtp2xep4`, `pp4-interleaved`, `dp_shard2-zero1`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from framework.errors import UserError, nearest
from framework.packages import require_package
from framework.recipe.schema import Parallel
from framework.training.preconditions import AXES

MAX_RANKS = 64
SUFFIXES = {
    "interleaved": {"pp_schedule": "interleaved"},
    "zb": {"pp_schedule": "zero_bubble"},
    **{f"zero{stage}": {"engine": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)},
}
DEFAULT_LAYOUTS = (
    "dp_replicate2", "dp_shard2", "dp_replicate2xdp_shard2", "dp_shard2-zero1", "dp_shard2-zero2", "dp_shard2-zero3",
    "ep2", "ep4", "ep8", "dp_shard4xep2", "dp_replicate2xdp_shard2xep2",
    "tp2", "tp4", "tp2xep2", "dp_shard2xtp2xep4",
    "cp2", "cp4", "cp2xep2", "tp2xcp2", "cp2xtp2xep4",
    "pp2", "pp2-zb", "pp4-interleaved", "pp2xep2", "tp2xpp2", "cp2xpp2", "dp_shard2xtp2xpp2", "cp2xtp2xpp2",
)


@dataclass(frozen=True)
class Layout:
    """A layout by the name it was given. parallel: the recipe's section that it stands for."""

    name: str
    parallel: Parallel

    @property
    def num_ranks(self) -> int:
        """Ranks in all."""
        p = self.parallel
        return p.dp_replicate * p.dp_shard * p.cp * p.tp * p.pp


def parse_layout(name: str) -> Layout:
    """Read a name: `x`-joined axis and number, then suffixes for schedule and engine; axes not named are 1.

    Where ep exceeds dp_shard * cp * tp, dp_shard grows to the smallest that admits it. Raises UserError.
    """
    axes, *suffixes = name.split("-")
    fields = _degrees(name, axes)
    for suffix in suffixes:
        fields |= _suffix(name, suffix, fields)
    if "pp_schedule" in fields and fields.get("pp", 1) == 1:
        raise _error(name, "a schedule without pipeline stages; allowed: with pp of at least 2")
    layout = Layout(name, Parallel(**_admit_experts(fields)))
    if layout.num_ranks > MAX_RANKS:
        raise _error(name, f"{layout.num_ranks} ranks; allowed: up to {MAX_RANKS} on one machine")
    return layout


def require_engine(layout: Layout, dtype: str) -> None:
    """Raise UserError where a layout's engine is not installed here, or does not compute in a dtype."""
    if layout.parallel.engine != "deepspeed":
        return
    require_package(f"layout {layout.name!r}: it", "deepspeed")
    if dtype != "float32":
        raise _error(layout.name, f"DeepSpeed keeps weights in float32, not in {dtype}; allowed: --dtype float32")


def _degrees(name: str, text: str) -> dict[str, object]:
    degrees: dict[str, object] = {}
    for part in re.split(r"(?<=\d)x", text):
        found = re.fullmatch(r"([A-Za-z_]*)([0-9]{0,6})", part)
        axis, digits = found.groups() if found else (part, "")
        if axis not in AXES:
            raise _error(name, f"no axis {axis!r}{_nearest_axes(axis)}; allowed: {', '.join(AXES)}, joined by x, "
                         "each with a number")
        if not digits or int(digits) == 0:
            raise _error(name, f"{part!r} has no degree; allowed: a number of at least 1, as {axis}2")
        if axis in degrees:
            raise _error(name, f"{axis} stands twice; allowed: once")
        degrees[axis] = int(digits)
    return degrees


def _suffix(name: str, suffix: str, fields: dict[str, object]) -> dict[str, object]:
    if suffix not in SUFFIXES:
        raise _error(name, f"no suffix {suffix!r}{nearest(suffix, SUFFIXES)}; allowed: {', '.join(SUFFIXES)}")
    if set(SUFFIXES[suffix]) & set(fields):
        raise _error(name, f"-{suffix} after another of its kind; allowed: one schedule, one engine")
    return SUFFIXES[suffix]


def _nearest_axes(word: str) -> str:
    """The axes that begin so (dp), else the one that resembles the word most; they are too short for `nearest`."""
    begin = [axis for axis in AXES if word and axis.startswith(word)]
    found = begin or get_close_matches(word, AXES, n=1, cutoff=0.4)
    return f"; nearest: {', '.join(found)}" if found else ""


def _admit_experts(fields: dict[str, object]) -> dict[str, object]:
    dp_shard, others, ep = fields.get("dp_shard", 1), fields.get("cp", 1) * fields.get("tp", 1), fields.get("ep", 1)
    if ep > dp_shard * others:
        while dp_shard * others % ep:
            dp_shard += 1
    return fields | {"dp_shard": dp_shard}


def _error(name: str, text: str) -> UserError:
    return UserError(f"layout {name!r}: {text}")
