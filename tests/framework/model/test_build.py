"""Built models against the recipe's own tables of parameters, on the meta device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.model import Context, build_language_model
from framework.parametrization import initialize
from framework.parametrization.roles import Role, declarations
from framework.recipe.architecture import architecture
from framework.recipe.parameters import parameters
from framework.recipe.schema import Init, Model
from tests.helpers.models import roles_of


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


def test_buffers_of_a_meta_model_start_at_zero():
    model = on_meta(
        pattern="E", d_model=16, vocab_size=31, ffn=dict(d_ff=8),
        moe=dict(num_experts=4, top_k=2, d_expert=4, router="sigmoid", selection_bias_rate=0.1),
    ).to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(7.0)
    initialize(model, Init(), seed=0)
    assert [buffer.shape for buffer in model.buffers()] == [(4,)]
    assert all(buffer.eq(0).all() for buffer in model.buffers())


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


def maybe(strategy):
    return st.none() | strategy


attentions = st.fixed_dictionaries(dict(
    num_heads=st.sampled_from([4, 8]), num_kv_heads=maybe(st.sampled_from([1, 2, 4])), head_dim=maybe(st.just(12)),
    qk_norm=st.sampled_from(["none", "head", "full"]), qkv_bias=st.booleans(), rope=st.booleans(),
))
ffns = st.fixed_dictionaries(dict(
    d_ff=st.sampled_from([24, 48]), activation=st.sampled_from(["swiglu", "gelu", "relu", "relu2"]),
))
moes = st.fixed_dictionaries(dict(
    num_experts=st.sampled_from([4, 6]), top_k=st.integers(1, 4), d_expert=st.sampled_from([5, 12]),
    activation=st.sampled_from(["swiglu", "gelu", "relu", "relu2"]), num_shared_experts=st.integers(1, 2),
    router=st.sampled_from(["softmax_topk", "topk_softmax", "sigmoid"]), selection_bias_rate=st.sampled_from([0, 0.1]),
    shared_expert_router=st.booleans(), output_norm=st.booleans(),
)) | st.fixed_dictionaries(dict(
    expansion_rate=st.integers(2, 4), granularity=st.sampled_from([1, 2, 4]),
    router=st.sampled_from(["softmax_topk", "expert_choice"]),
))
mambas = st.fixed_dictionaries(dict(
    d_state=maybe(st.sampled_from([4, 8])), d_conv=st.integers(1, 4), expand=st.sampled_from([1.0, 1.5, 2.0]),
    head_dim=st.sampled_from([8, 16]), num_groups=st.sampled_from([1, 2]), dt_rank=maybe(st.integers(1, 5)),
    inner_norms=st.booleans(),
))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.text("*-EMm", min_size=1, max_size=4), st.text("*-EMm", min_size=2, max_size=3), st.booleans(),
    st.sampled_from(["rmsnorm", "layernorm"]), attentions, ffns, moes, mambas,
)
def test_parameters_are_those_of_the_recipe(sequence, parallel, tied, norm, attention, ffn, moe, mamba):
    model = Model(
        pattern=f"{sequence}[{parallel}]{sequence}", d_model=32, vocab_size=61, tie_embeddings=tied, norm=norm,
        attention=attention, ffn=ffn, moe=moe, mamba=mamba,
    )
    expected = architecture(model)
    with torch.device("meta"):
        built = build_language_model(expected)
    actual = {
        name: (declaration.role, tuple(module.get_parameter(local).shape))
        for name, module, local, declaration in declarations(built)
    }
    assert actual == {row.name: (row.role, row.shape) for row in parameters(expected)}
    assert sum(parameter.numel() for parameter in built.parameters()) == sum(row.size for row in parameters(expected))
