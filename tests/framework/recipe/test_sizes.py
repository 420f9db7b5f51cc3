"""Counts of parameters: the papers' exact numbers, and sums by hand."""

import pytest

from framework.recipe import architecture, sizes
from framework.recipe.flops import mean_visible_keys
from framework.recipe.schema import Model


def sizes_of(seq_len=1024, **fields):
    return sizes(architecture(Model(**{"vocab_size": 50257, **fields})), seq_len)


def moe_mamba(num_experts, **fields):
    moe = {"num_experts": num_experts, "top_k": 1, "d_expert": 1536, "activation": "relu"}
    return sizes_of(pattern="(mE)x8", d_model=512, moe=moe, **fields)


@pytest.mark.parametrize(("num_experts", "total"), [
    (42, 542_040_064), (32, 416_210_944), (16, 214_884_352), (8, 114_221_056), (4, 63_889_408),
])
def test_moe_mamba_counts_of_the_paper(num_experts, total):
    found = moe_mamba(num_experts)
    assert found["params_total_non_embedding"] == total
    assert found["params_active_non_embedding"] == 26_140_672
    assert found["params_router"] == 8 * 512 * num_experts


def test_mamba_25m_of_the_paper():
    assert sizes_of(pattern="(m)x16", d_model=512)["params_total_non_embedding"] == 27_115_520


@pytest.mark.parametrize(("d_model", "total"), [
    (512, 1_719_600), (768, 3_764_552), (1024, 6_600_032), (2048, 25_847_232),
])
def test_mamba2_layer_of_the_reference_implementation(d_model, total):
    found = sizes_of(pattern="M", d_model=d_model)
    gated_norm = 2 * d_model
    assert found["params_total_non_embedding"] + gated_norm == total


@pytest.mark.parametrize(("d_model", "total"), [(512, 1_694_720), (768, 3_770_880)])
def test_mamba1_layer_of_the_reference_implementation(d_model, total):
    assert sizes_of(pattern="m", d_model=d_model)["params_total_non_embedding"] == total


@pytest.mark.parametrize(("inner", "d_model"), [(4096, 2688), (1856, 448), (3904, 448)])
def test_an_expansion_may_be_a_quotient_written_out(inner, d_model):
    """Nemotron 3 has 4096 over 2688; as floats, quotient times divisor may miss the whole number."""
    settings = architecture(Model(pattern="m", d_model=d_model, vocab_size=8, mamba={"expand": inner / d_model}))
    assert round(settings.model.mamba.expand * d_model) == inner


def test_fine_grained_law_counts():
    """N = d^2 (8E + 4) n and N_act = 12 d^2 n of arXiv 2402.07871, at any granularity, with d_ff = 4 d and ReLU."""
    for granularity in (1, 4, 16):
        moe = {"expansion_rate": 64, "granularity": granularity, "activation": "relu", "output_norm": True}
        found = sizes_of(pattern="(*E)x4", d_model=256, moe=moe)
        assert found["params_total_non_embedding"] == 256**2 * (8 * 64 + 4) * 4
        assert found["params_active_non_embedding"] == 12 * 256**2 * 4
        assert (found["num_experts"], found["top_k"]) == (64 * granularity, granularity)


def test_joint_law_counts():
    """N_total = 2 d V + (4 + 9 E) n d^2 and N_act = 2 d V + 13 n d^2 of arXiv 2502.05172, with norms and routers."""
    found = sizes_of(pattern="(*E)x6", d_model=384, ffn={"multiplier": 3}, moe={"expansion_rate": 8})
    rest = found["params_router"] + found["params_norm"]
    assert found["params_total"] == 2 * 384 * 50257 + (4 + 9 * 8) * 6 * 384**2 + rest
    assert found["params_active"] == 2 * 384 * 50257 + 13 * 6 * 384**2 + rest


def test_tied_embedding_counts_once():
    untied, tied = (sizes_of(pattern="*-", d_model=64, tie_embeddings=tie) for tie in (False, True))
    assert untied["params_total"] - tied["params_total"] == 64 * 50257 == tied["params_embedding"]
    assert untied["flops_per_token"] == tied["flops_per_token"]


def test_norms_of_every_kind_are_counted_as_norms():
    attention = {"num_heads": 4, "num_kv_heads": 2, "qk_norm": "full"}
    found = sizes_of(pattern="*m", d_model=64, norm="layernorm", attention=attention, mamba={"inner_norms": True})
    assert found["params_norm"] == 3 * 2 * 64 + (64 + 32) + (4 + 16 + 16)


def test_shared_experts_are_active():
    base = dict(pattern="E", d_model=64, moe={"num_experts": 8, "top_k": 2, "d_expert": 32})
    more = dict(base, moe=base["moe"] | {"num_shared_experts": 2, "shared_expert_router": True})
    before, after = sizes_of(**base), sizes_of(**more)
    assert after["params_active_non_embedding"] - before["params_active_non_embedding"] == 3 * 64 * 2 * 32
    assert after["params_router"] - before["params_router"] == 64


def test_flops_by_hand():
    found = sizes_of(seq_len=3, pattern="*E", d_model=8, vocab_size=10, attention={"num_heads": 2},
                     moe={"num_experts": 4, "top_k": 2, "d_expert": 5, "activation": "gelu"})
    matrices = 4 * 8 * 8 + 4 * 8 + 2 * (2 * 5 * 8) + 10 * 8
    assert found["flops_per_token"] == 3 * (2 * matrices + 4 * 8 * 2)


def test_state_space_flops_by_hand():
    found = sizes_of(pattern="M", d_model=64, vocab_size=10)
    matrices = 64 * (128 + 128 + 128 + 128 + 2) + 4 * (128 + 128 + 128) + 128 * 64 + 10 * 64
    assert found["flops_per_token"] == 3 * (2 * matrices + 6 * 128 * 128)


@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
def test_mean_visible_keys(window):
    visible = [min(position + 1, window or 10**9) for position in range(7)]
    assert mean_visible_keys(7, window) == pytest.approx(sum(visible) / 7)
