"""The written folder loaded in transformers, and its logits beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framework.convert.weights import KEPT_FLOAT32
from framework.errors import UserError
from framework.model import Context
from framework.training.load import load_run

if TYPE_CHECKING:
    from framework.convert.weights import Weights
    from framework.surgery import Source

WITHIN = 1e-5
"""Largest difference of a logit, over the largest logit."""
BATCH, LENGTH = 2, 19


def random_tokens(vocab_size: int) -> Tensor:
    """int64 [BATCH, LENGTH], the same each time."""
    return torch.randint(vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


def compare_logits(mine: Tensor, theirs: Tensor, where: str) -> dict[str, float]:
    """`max_abs`, the largest difference of a logit, and `relative`, that over the largest of mine.

    where: whose the others are. Raises UserError where `relative` is above WITHIN, or not finite.
    """
    difference = (mine - theirs).abs().max().item()
    relative = difference / max(mine.abs().max().item(), torch.finfo(torch.float32).tiny)
    if not relative <= WITHIN:
        raise UserError(f"--verify: logits in {where} differ by {difference:.3g}, {relative:.3g} of the largest "
                        f"(allowed: {WITHIN:g}); nothing written")
    return {"max_abs": difference, "relative": relative}


def verify(source: Source, step: int, folder: Path, weights: Weights) -> dict[str, float]:
    """Compare float32 logits of 2 x 19 random tokens; both models have the weights that were written.

    Returns what `compare_logits` does, and raises as it does, or where transformers misses or ignores a tensor.
    """
    import transformers

    with _quiet(transformers.logging):
        theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True)
    if wrong := sorted({*told["missing_keys"], *told["unexpected_keys"]}):
        raise UserError(f"--verify: transformers misses or ignores {wrong[0]} ({len(wrong)} tensors); nothing written")
    ours = load_run(source.run, step).model
    if weights.dtype is not torch.float32:
        round_as_written(ours, weights)
    tokens_BS = random_tokens(source.loaded.recipe.model.vocab_size)
    with torch.no_grad():
        mine, other = ours(tokens_BS, Context()), theirs.eval()(tokens_BS, use_cache=False).logits
    return compare_logits(mine, other, "transformers")


@contextmanager
def _quiet(logs: Any) -> Iterator[None]:
    """Within it transformers neither warns nor draws progress: what matters is compared."""
    level, drawing = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if drawing:
            logs.enable_progress_bar()


def round_as_written(model: torch.nn.Module, weights: Weights) -> None:
    """Give parameters the values that were written of them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(KEPT_FLOAT32):
                factor = weights.factors.get(name, 1.0)
                parameter.copy_((parameter * factor).to(weights.dtype).float() / factor)
