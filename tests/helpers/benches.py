"""Recipes of recipes/bench, small."""

import os
from pathlib import Path

SIZES = ["model.d_model=32", "model.vocab_size=384", "model.attention.num_heads=2", "model.attention.head_dim=16",
         "model.moe.num_experts=4", "model.moe.top_k=2", "model.moe.d_expert=8", "model.norm_eps=1e-3"]
MOE = ["bench/moe_256", *SIZES, "model.pattern=(*E)x2", "model.attention.rope_base=100"]
MAMBA = ["bench/moe_mamba_256", *SIZES, "model.pattern=mE*E"]


def once(overrides: list[str]) -> list[str]:
    """Overrides of which a later one takes the place of an earlier one."""
    return list({each.partition("=")[0]: each for each in overrides}.values())


def on_corpus(small: list[str], folder: Path, *changes: str) -> list[str]:
    """A small recipe on the corpus in a folder, with batches of 4 x 16 tokens."""
    data = [f"data.corpus={folder / 'corpus'}", "data.seq_len=16", "data.batch_size=4", "training.steps=3"]
    return [small[0], *once([*small[1:], *data, *changes])]


def ours(words: list[str], folder: Path, *changes: str):
    """What is measured of a small recipe; on a rank that has joined. Data goes beside the corpus."""
    import torch

    from framework.bench.ours import Ours
    from framework.recipe import load_recipe

    os.environ["UPMIX_DATA"] = str(folder / "data")
    name, *overrides = on_corpus(words, folder, *changes)
    return Ours(load_recipe(name, overrides), torch.device("cpu"))
