"""Losses of the form m / N^mu + n / D^nu + c, and their compute-optimal N and D in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from framework.errors import UserError


@dataclass(frozen=True)
class PowerSum:
    """L(N, D) = m N^-mu + n D^-nu + c, in nats a token; exponents stored positive."""

    m: float
    mu: float
    n: float
    nu: float
    c: float

    def loss(self, num_params: float, tokens: float) -> float:
        """L(N, D)."""
        return self.m * num_params**-self.mu + self.n * tokens**-self.nu + self.c

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) of least loss under 6 N D = flops: N = G (F/6)^(nu/(mu+nu)), G = (mu m / (nu n))^(1/(mu+nu)).

        Joint MoE scaling laws (arXiv 2502.05172) equation 7. As printed there, with exponents below zero, G would be
        inverted; with positive ones it is right. Raises UserError where more of N or of D does not lower the loss.
        """
        if min(self.m, self.mu, self.n, self.nu) <= 0:
            raise UserError(f"the law falls with N^-{self.mu:.3g} and D^-{self.nu:.3g}: no optimum; allowed: "
                            "coefficients under which both lower the loss")
        total = self.mu + self.nu
        num_params = (self.mu * self.m / (self.nu * self.n)) ** (1 / total) * (flops / 6) ** (self.nu / total)
        return num_params, flops / (6 * num_params)
