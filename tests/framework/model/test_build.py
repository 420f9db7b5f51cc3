"""Built models against the recipe's own tables of parameters, on the meta device."""

import pytest
import torch

from framework.model import Context, build_language_model
from framework.parametrization import initialize, roles_of
from framework.parametrization.roles import Role, declarations
from framework.recipe.architecture import architecture
from framework.recipe.schema import Init, Model


def on_meta(**fields):
    with torch.device("meta"):
        return build_language_model(architecture(Model(**fields)))


@pytest.mark.parametrize("tied", [False, True])
def test_meta_model_is_completed_in_place(tied):
    fields = dict(
        pattern="*-", d_model=16, vocab_size=31, tie_embeddings=tied, attention=dict(num_heads=4, rope_base=50.0)
    )
    direct, later = build_language_model(architecture(Model(**fields))), on_meta(**fields)
    assert all(parameter.is_meta for parameter in later.parameters())
    later.to_empty(device="cpu")
    for model in (direct, later):
        initialize(model, Init(), seed=0)
    assert (later.unembedding.weight is later.embedding.weight) == tied
    tokens_BS = torch.arange(12).view(1, 12)
    assert torch.equal(direct(tokens_BS, Context()), later(tokens_BS, Context()))


def test_tied_weight_counts_once_as_an_embedding_of_small_spread():
    tied = on_meta(pattern="-", d_model=16, vocab_size=31, tie_embeddings=True)
    table = {name: declaration for name, _, _, declaration in declarations(tied)}
    assert table["embedding.weight"].fan_in == 16 and "unembedding.weight" not in table
    assert Role.UNEMBEDDING not in roles_of(tied)


def test_residual_branches_are_counted():
    model = on_meta(pattern="([*-]-)x3", d_model=16, vocab_size=31, attention=dict(num_heads=2))
    assert model.num_residual_branches == 9


def test_cast_keeps_a_tied_weight_tied():
    model = on_meta(pattern="-", d_model=16, vocab_size=31, tie_embeddings=True).to(torch.bfloat16)
    assert model.unembedding.weight is model.embedding.weight
