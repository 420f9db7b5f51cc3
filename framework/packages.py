"""Packages that not every installation has: looked for without importing them."""

import importlib.util

from framework.errors import UserError

EXTRAS = {"accelerate": "hf", "deepspeed": "zero", "lm-eval": "hf", "transformers": "hf", "wandb": "wandb"}
"""Which extra of ours brings a package; one without is asked for by its own name."""


def is_installed(package: str) -> bool:
    """Whether a package of this name can be imported."""
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def require_package(what: str, package: str) -> None:
    """Raise UserError, which begins with what asked for it, where a package is not installed."""
    if not is_installed(package):
        source = f"'upmix[{EXTRAS[package]}]'" if package in EXTRAS else package
        raise UserError(f"{what} needs the package {package}: pip install {source}")
