"""What tasks need: the package, a model that may be padded, and tasks that can be run. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from framework.errors import UserError

if TYPE_CHECKING:
    from framework.recipe import Architecture

KINDS = ("loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until")
NEW_TOKENS = 256
"""That lm-eval's own models generate where a task does not say."""


def require_token_choice(architecture: Architecture, what: str) -> None:
    """Raise UserError where what a token is computed from depends on others beside it: then padding and what else is in
    a batch would change results.
    """
    for sublayer in architecture.sublayers():
        if sublayer.kind != "moe":
            continue
        settings = sublayer.settings
        if settings.router == "expert_choice":
            raise UserError(f"{what}: the experts of {sublayer.letter!r} choose among all tokens of a batch, which "
                            "tasks fill with others; allowed: routers by which tokens choose")
        if settings.capacity_factor is not None and settings.capacity_in_evaluation:
            raise UserError(f"{what}: the experts of {sublayer.letter!r} drop tokens in evaluation too, by what else "
                            "is in a batch; allowed: capacity_in_evaluation=false")


def require_possible(name: str, task: Any, seq_len: int) -> None:
    """Raise UserError for a task that asks for what a language model here does not do. task: lm-eval's."""
    def refused(given: str, allowed: str) -> UserError:
        return UserError(f"task {name}: {given}; allowed: {allowed}")

    kind = task.get_config("output_type")
    if kind not in KINDS:
        raise refused(f"its output_type is {kind}", ", ".join(KINDS))
    if getattr(task, "MULTIMODAL", False):
        raise refused("it shows more than text", "tasks of text alone")
    if getattr(task, "UNSAFE_CODE", False):
        raise refused("it runs code that the model writes", "tasks that run none")
    if kind != "generate_until":
        return
    settings = task.get_config("generation_kwargs") or {}
    if is_sampled(settings):
        raise refused("it samples", "greedy ones (do_sample: false)")
    if (wanted := new_tokens(settings)) >= seq_len:
        raise refused(f"it generates up to {wanted} tokens, which leave no room for a prompt in the {seq_len} of a "
                      "sequence", "generation_kwargs with a smaller max_gen_toks, or a model of longer sequences")


def is_sampled(settings: Mapping[str, Any]) -> bool:
    """Whether a task's generation_kwargs ask for anything but the likeliest token."""
    temperature = float(settings.get("temperature") or 0)
    return temperature > 0 if settings.get("do_sample") is None else bool(settings["do_sample"])


def new_tokens(settings: Mapping[str, Any]) -> int:
    """How many tokens a task's generation_kwargs allow at most."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return int(next((settings[name] for name in names if settings.get(name) is not None), NEW_TOKENS))
