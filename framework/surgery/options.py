"""How a model is upcycled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from framework.errors import UserError

METHODS = ("copy", "granular", "drop")
ROUTERS = ("recipe", "virtual_groups", "uniform")
SCALINGS = ("none", "paper", "exact")
OPTIMIZERS = ("drop", "carry")

_DEFAULT_ROUTER = {"copy": "recipe", "granular": "virtual_groups", "drop": "uniform"}
_DEFAULT_SCALING = {"copy": "none", "granular": "paper", "drop": "none"}


@dataclass(frozen=True)
class Options:
    """What the papers leave to choose. A router or scaling of None is the method's own: see `settled`.

    method: copy, every expert the whole block (https://arxiv.org/abs/2212.05055); granular, every expert a shard of its
        hidden units (https://arxiv.org/abs/2410.07524); drop, copies of which a share of the hidden units starts anew
        (https://arxiv.org/abs/2502.19261).
    drop_ratio: that share. noise_std: of a normal added to the experts' weights, in noise_share of their hidden units.
    router: how it starts: by the recipe's rule, so with replicas of all shards sharing a row, or small and uniform.
    scaling: of the experts' weights, as `scaling.factors` has it.
    optimizer: carry takes the dense run's moments along, drop starts without any.
    keep_step: the new run goes on at the dense run's step, its schedule and its place in the data; else at step 0.
    """

    method: str = "copy"
    drop_ratio: float = 0.5
    noise_std: float = 0.0
    noise_share: float = 0.5
    router: str | None = None
    scaling: str | None = None
    optimizer: str = "drop"
    keep_step: bool = False

    def settled(self) -> Options:
        """The options with the method's own router and scaling where none were given.

        Raises UserError for a value that is not allowed.
        """
        for option, value, allowed in (("method", self.method, METHODS), ("router", self.router, (None, *ROUTERS)),
                                       ("scaling", self.scaling, (None, *SCALINGS)),
                                       ("optimizer", self.optimizer, OPTIMIZERS)):
            if value not in allowed:
                names = ", ".join(name for name in allowed if name is not None)
                raise UserError(f"--{option} {value!r}; allowed: {names}")
        for option, value in (("drop-ratio", self.drop_ratio), ("noise-share", self.noise_share)):
            if not 0 <= value <= 1:
                raise UserError(f"--{option} {value:g}; allowed: a share, from 0 to 1")
        if not 0 <= self.noise_std < float("inf"):
            raise UserError(f"--noise-std {self.noise_std:g}; allowed: 0 or more, finite")
        return replace(self, router=self.router or _DEFAULT_ROUTER[self.method],
                       scaling=self.scaling or _DEFAULT_SCALING[self.method])
