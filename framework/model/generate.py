"""Sampling from a language model with caches.

B batch, S sequence, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from framework.errors import UserError
from framework.model.context import Context
from framework.model.language_model import LanguageModel

SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny  # what is below counts as 0


def generate(
    model: LanguageModel, prompt_ids: Sequence[int], max_new_tokens: int, temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, seed: int = 0, stop: int | None = None,
) -> Iterator[int]:
    """Iterate over the tokens that continue a prompt, at most max_new_tokens, until `stop` (which is not yielded).

    temperature: divides the logits; 0 takes the likeliest token. top_k: sample among the k likeliest. top_p: among the
    fewest likeliest whose probabilities reach top_p (https://arxiv.org/abs/1904.09751). Equal seeds give equal tokens.
    The model must be in evaluation mode. Raises UserError, at once, for an empty prompt and for options out of range.
    """
    _check(prompt_ids, max_new_tokens, temperature, top_k, top_p)
    tokens_BS = torch.tensor([list(prompt_ids)], device=model.embedding.weight.device)
    batches = generate_batch(model, tokens_BS, max_new_tokens, temperature, top_k, top_p, seed)
    return takewhile(lambda token: token != stop, (token_B.item() for token_B in batches))


def _check(
    prompt_ids: Sequence[int], max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if not prompt_ids:
        raise UserError("the prompt has no token; allowed: at least one")
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens={max_new_tokens}; allowed: 0 or more")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature}; allowed: 0 (the likeliest token) or any positive number")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k={top_k}; allowed: 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}; allowed: above 0, up to 1")


@torch.no_grad()
def generate_batch(
    model: LanguageModel, prompt_BS: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, seed: int = 0,
) -> Iterator[Tensor]:
    """Yield int64 [B], max_new_tokens times: the next token of each of B prompts of equal length.

    prompt_BS: int64, S >= 1; the model is in evaluation mode. The options are those of `generate`.
    """
    assert not model.training, "call model.eval() first: some layers drop tokens in training"
    weight = model.embedding.weight
    generator = torch.Generator(weight.device).manual_seed(seed)
    cache = model.new_cache(prompt_BS.shape[0], prompt_BS.shape[1] + max_new_tokens, weight.device, weight.dtype)
    tokens_BS = prompt_BS
    for _ in range(max_new_tokens):
        logits_BV = model(tokens_BS, Context(), cache=cache)[:, -1]
        token_B = sample(logits_BV, temperature, top_k, top_p, generator)
        yield token_B
        tokens_BS = token_B[:, None]


def sample(
    logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """Draw a token per row from float logits [B, V]: int64 [B]. The options are those of `generate`."""
    if temperature < SMALLEST_TEMPERATURE:
        return logits_BV.argmax(-1)
    sorted_BV, token_BV = logits_BV.float().sort(dim=-1, descending=True)
    # The largest becomes 0, so that no quotient is infinite but towards probability 0.
    probability_BV = ((sorted_BV[:, :top_k] - sorted_BV[:, :1]) / temperature).softmax(-1)
    if top_p is not None:
        before_BV = probability_BV.cumsum(-1) - probability_BV
        probability_BV = probability_BV.masked_fill(before_BV >= top_p, 0.0)
    choice_B1 = torch.multinomial(probability_BV, 1, generator=generator)
    return token_BV.gather(-1, choice_B1)[:, 0]
