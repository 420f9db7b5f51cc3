"""Sampling from a language model with caches.

B batch, S sequence, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from framework.model.context import Context
from framework.model.language_model import LanguageModel


def generate(
    model: LanguageModel, prompt_ids: Sequence[int], max_new_tokens: int, temperature: float = 1.0,
    top_k: int | None = None, top_p: float | None = None, seed: int = 0, stop: int | None = None,
) -> Iterator[int]:
    """Yield the tokens that continue a prompt, at most max_new_tokens, until `stop` (which is not yielded).

    temperature: divides the logits; 0 takes the likeliest token. top_k: sample among the k likeliest. top_p: among the
    fewest likeliest whose probabilities reach top_p (https://arxiv.org/abs/1904.09751). Equal seeds give equal tokens.
    """
    tokens_BS = torch.tensor([list(prompt_ids)], device=model.embedding.weight.device)
    for token_B in generate_batch(model, tokens_BS, max_new_tokens, temperature, top_k, top_p, seed):
        token = token_B.item()
        if token == stop:
            return
        yield token


@torch.no_grad()
def generate_batch(
    model: LanguageModel, prompt_BS: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, seed: int = 0,
) -> Iterator[Tensor]:
    """Yield int64 [B], max_new_tokens times: the next token of each of B prompts of equal length.

    prompt_BS: int64, S >= 1. The options are those of `generate`.
    """
    assert prompt_BS.shape[1] > 0, "the first token follows from a prompt"
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
    if temperature == 0:
        return logits_BV.argmax(-1)
    sorted_BV, token_BV = (logits_BV.float() / temperature).sort(dim=-1, descending=True)
    probability_BV = sorted_BV[:, :top_k].softmax(-1)
    if top_p is not None:
        before_BV = probability_BV.cumsum(-1) - probability_BV
        # The likeliest token stays whatever rounding makes of a tiny top_p.
        before_BV[:, 0] = -1.0
        probability_BV = probability_BV.masked_fill(before_BV >= top_p, 0.0)
    choice_B1 = torch.multinomial(probability_BV, 1, generator=generator)
    return token_BV.gather(-1, choice_B1)[:, 0]
