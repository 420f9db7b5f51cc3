"""What is to be done, checked as far as that goes without torch and without reading weights."""

from __future__ import annotations

from dataclasses import dataclass

from framework.recipe import Loaded
from framework.surgery.match import Pair, match
from framework.surgery.options import Options
from framework.surgery.promise import capacity_warning, deviations
from framework.surgery.source import Source
from framework.surgery.split import Split, split_block


@dataclass(frozen=True)
class Upcycling:
    """source: the dense run. target: the recipe of the new one. options: settled. pairs: every sublayer of both.

    splits: of each pair that becomes a mixture, by its prefix.
    """

    source: Source
    target: Loaded
    options: Options
    pairs: tuple[Pair, ...]
    splits: dict[str, Split]

    @property
    def deviations(self) -> list[str]:
        """Why the new model's function is not the dense one's, each reason once; none: it is, to rounding."""
        told = (deviations(pair.target.settings, self.splits[pair.prefix], self.options) for pair in self._mixtures())
        return list(dict.fromkeys(reason for reasons in told for reason in reasons))

    @property
    def warnings(self) -> list[str]:
        """What limits equality where it is promised."""
        told = (capacity_warning(pair.target.settings) for pair in self.pairs if pair.target.kind == "moe")
        return list(dict.fromkeys(warning for warning in told if warning))

    def _mixtures(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.becomes_mixture]


def prepare(source: Source, target: Loaded, options: Options) -> Upcycling:
    """Find which sublayer becomes which and lay out every block's hidden units.

    Raises UserError for options, sublayers or sizes that do not fit: see `Options`, `match`, `split_block`.
    """
    options = options.settled()
    pairs = match(source.loaded.architecture, target.architecture)
    splits = {
        pair.prefix: split_block(pair.source.settings, pair.target.settings, options.method, pair.place)
        for pair in pairs if pair.becomes_mixture
    }
    return Upcycling(source, target, options, tuple(pairs), splits)
