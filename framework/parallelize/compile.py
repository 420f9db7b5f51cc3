"""torch.compile for blocks of dense computation."""

import logging

import torch

from framework.model.attention import Attention
from framework.model.ffn import FFN
from framework.model.language_model import LanguageModel

log = logging.getLogger(__name__)

COMPILED = (Attention, FFN)
"""MoE blocks stay eager: only as they run is it known how many rows an expert gets. Their shared experts are an FFN.

So do Mamba blocks: the compiler unrolls their loops over chunks, so that its work grows with the sequence.
"""

COMPILATIONS_OF_A_BLOCK = 4
"""With and without gradients, for one size of a batch and for any."""


def apply_compile(model: LanguageModel, backend: str = "inductor") -> None:
    """Compile attention and dense feed-forward blocks when they are first called, in place.

    Layers of equal blocks share one compilation. A block is compiled as a whole, or the run stops and says why: it
    never goes on slowly unnoticed. backend: a name that `torch.compile` knows.
    """
    blocks = [module for module in model.modules() if isinstance(module, COMPILED)]
    for block in blocks:
        # Only the forward: hooks that exchange tokens with other ranks stay outside, where any PyTorch runs them.
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)
    # PyTorch counts the compilations of a function over all modules that run it, and they may all differ.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, COMPILATIONS_OF_A_BLOCK * len(blocks))
    log.info("compiled: %d attention and dense feed-forward blocks", len(blocks))
