"""The least value of a function of one number."""

from collections.abc import Callable


def lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is least on [low, high], ends included (Brent's method)."""
    from scipy.optimize import minimize_scalar

    inside = minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": 1e-9, "maxiter": 500}).x
    return min((float(inside), low, high), key=function)


def crossing(function: Callable[[float], float], low: float, high: float) -> float | None:
    """Where a function changes its sign between low and high; None where it has one sign at both ends."""
    from scipy.optimize import brentq

    return None if function(low) * function(high) > 0 else float(brentq(function, low, high, xtol=1e-12))
