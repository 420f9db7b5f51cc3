"""All cases, by importance: a run that is short of time leaves out the last."""

from framework.bench.kernels import dispatch_cases, head_cases, moe_cases, rotary_cases, ssm_cases
from framework.bench.kernels.case import Case


def all_cases(only: str | None = None) -> list[Case]:
    """Those whose configuration contains `only`. ValueError where there are none."""
    parts = moe_cases, ssm_cases, head_cases, rotary_cases, dispatch_cases
    cases = [case for part in parts for case in part.cases()]
    chosen = [case for case in cases if only is None or only in case.config]
    if not chosen:
        allowed = ", ".join(sorted({case.kernel for case in cases}))
        raise ValueError(f"--only {only}: no kernel is called so; allowed: {allowed}")
    return chosen
