"""The Mamba blocks: sizes, initial values, documents, caches and dtypes."""

import pytest
import torch

from framework.model.context import Context
from framework.model.mamba1 import Mamba1
from framework.model.mamba2 import GatedRMSNorm, Mamba2
from framework.parametrization.roles import declarations
from framework.recipe.schema import Mamba

KINDS = {
    "mamba1": (Mamba1, Mamba(d_state=4, dt_rank=2, chunk_size=8)),
    "mamba1 with inner norms": (Mamba1, Mamba(d_state=4, dt_rank=2, chunk_size=8, inner_norms=True)),
    "mamba2": (Mamba2, Mamba(d_state=6, head_dim=4, chunk_size=8)),
    "mamba2 in groups": (Mamba2, Mamba(d_state=6, head_dim=4, num_groups=2, chunk_size=8)),
}
all_kinds = pytest.mark.parametrize("kind", KINDS)
D_MODEL = 8


def make(kind, dtype=torch.float64):
    """A block with its declared initial values, and normal ones where a recipe's rule would apply."""
    block_class, section = KINDS[kind]
    block, generator = block_class(D_MODEL, section, 1e-5), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, module, name, declaration in declarations(block):
            parameter = getattr(module, name)
            if declaration.init is None:
                parameter.normal_(std=declaration.fan_in**-0.5, generator=generator)
            else:
                declaration.init(parameter, generator)
    return block.to(dtype)


def inputs(seq_len=29, dtype=torch.float64):
    return torch.randn(2, seq_len, D_MODEL, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("block_class, d_model, d_state, expected", [
    (Mamba1, 512, 16, 1_694_720), (Mamba1, 768, 16, 3_770_880),
    (Mamba2, 512, 128, 1_719_600), (Mamba2, 768, 128, 3_764_552),
    (Mamba2, 1024, 128, 6_600_032), (Mamba2, 2048, 128, 25_847_232),
])
def test_parameter_counts_of_the_published_sizes(block_class, d_model, d_state, expected):
    with torch.device("meta"):
        block = block_class(d_model, Mamba(d_state=d_state, dt_rank=d_model // 16), 1e-5)
    assert sum(parameter.numel() for parameter in block.parameters()) == expected


def test_roles_of_mamba1():
    with torch.device("meta"):
        block = Mamba1(D_MODEL, KINDS["mamba1 with inner norms"][1], 1e-5)
    assert {name: declaration.role.value for name, _, _, declaration in declarations(block)} == {
        "z.weight": "ssm_z", "x.weight": "ssm_x", "B.weight": "ssm_B", "C.weight": "ssm_C",
        "dt_low.weight": "ssm_dt", "dt.weight": "ssm_dt", "conv.weight": "ssm_conv", "conv.bias": "bias",
        "dynamics.A_log": "ssm_A", "dynamics.D": "ssm_D", "dynamics.dt_bias": "bias", "out.weight": "ssm_out",
        "dt_norm.weight": "norm", "B_norm.weight": "norm", "C_norm.weight": "norm",
    }


def test_roles_of_mamba2():
    with torch.device("meta"):
        block = Mamba2(D_MODEL, KINDS["mamba2"][1], 1e-5)
    assert {name: declaration.role.value for name, _, _, declaration in declarations(block)} == {
        "z.weight": "ssm_z", "x.weight": "ssm_x", "B.weight": "ssm_B", "C.weight": "ssm_C", "dt.weight": "ssm_dt",
        "conv_x.weight": "ssm_conv", "conv_B.weight": "ssm_conv", "conv_C.weight": "ssm_conv",
        "conv_x.bias": "bias", "conv_B.bias": "bias", "conv_C.bias": "bias",
        "dynamics.A_log": "ssm_A", "dynamics.D": "ssm_D", "dynamics.dt_bias": "bias",
        "norm.weight": "norm", "out.weight": "ssm_out",
    }


@all_kinds
def test_only_the_output_matrix_writes_to_the_residual_stream(kind):
    assert [name for name, _, _, declaration in declarations(make(kind)) if declaration.writes_residual] == [
        "out.weight"]


@all_kinds
def test_initial_values(kind):
    block = make(kind, torch.float32)
    dynamics = block.dynamics
    dt = torch.nn.functional.softplus(dynamics.dt_bias)
    assert dt.min() >= 1e-3 * (1 - 1e-4) and dt.max() <= 0.1 * (1 + 1e-4) and dt.max() > 2 * dt.min()
    assert (dynamics.D == 1).all()
    if isinstance(block, Mamba1):
        torch.testing.assert_close(dynamics.A_log.exp(), torch.arange(1.0, 5.0).expand(2 * D_MODEL, 4))
        assert 0.5 < block.dt.weight.abs().max() <= 2**-0.5
        convolutions = [block.conv]
    else:
        assert (dynamics.A_log >= 0).all() and (dynamics.A_log.exp() <= 16).all()
        assert dynamics.A_log.std() > 0.1
        convolutions = [block.conv_x, block.conv_B, block.conv_C]
    for convolution in convolutions:
        for parameter in convolution.parameters():
            assert 0.2 < parameter.abs().max() <= 0.5


@all_kinds
def test_packed_documents_equal_documents_apart(kind):
    block, x_BSD, lengths = make(kind), inputs(), [1, 9, 3, 16]
    document_BS = torch.arange(4).repeat_interleave(torch.tensor(lengths)).expand(2, -1)
    packed = block(x_BSD, Context(document_BS=document_BS))
    apart = torch.cat([block(part_BSD, Context()) for part_BSD in x_BSD.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, apart, rtol=0, atol=1e-13)
    assert not torch.allclose(packed, block(x_BSD, Context()))
    gradients = [torch.autograd.grad(y.square().sum(), block.parameters()) for y in (packed, apart)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@all_kinds
@pytest.mark.parametrize("lengths", [[1] * 29, [29], [20] + [1] * 9, [3, 17, 1, 8]])
def test_a_cache_continues_the_sequence(kind, lengths):
    block, x_BSD = make(kind), inputs()
    cache = block.new_cache(2, 29, x_BSD.device, x_BSD.dtype)
    parts = [block(part_BSD, Context(), cache) for part_BSD in x_BSD.split(lengths, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), block(x_BSD, Context()), rtol=0, atol=1e-13)


@all_kinds
def test_bfloat16_is_near_float32(kind):
    block = make(kind, torch.float32)
    exact = block(inputs(dtype=torch.float32), Context())
    rounded = block(inputs(dtype=torch.bfloat16), Context())
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.02 * exact.norm()
    rounded.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@all_kinds
def test_a_cache_in_bfloat16_keeps_its_state_in_float32(kind):
    block = make(kind, torch.float32)
    x_BSD = inputs(dtype=torch.bfloat16)
    cache = block.new_cache(2, 29, x_BSD.device, x_BSD.dtype)
    for part_BSD in x_BSD.split([20] + [1] * 9, dim=1):
        block(part_BSD, Context(), cache)
    assert cache.state.dtype == torch.float32
    assert all(tail.dtype == torch.bfloat16 for tail in cache.tails.values())


@all_kinds
def test_float32_parameters_serve_float64_activations(kind):
    exact = make(kind)(inputs(), Context())
    mixed = make(kind, torch.float32)(inputs(), Context())
    torch.testing.assert_close(mixed, exact, rtol=1e-12, atol=1e-12)


@all_kinds
def test_chunk_size_changes_nothing(kind):
    block, results = make(kind), []
    for chunk_size in (1, 7, 8, 16, 64):
        block.chunk_size = chunk_size
        results.append(block(inputs(), Context()))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-13)


@all_kinds
def test_dynamics_are_float32_under_bfloat16(kind):
    dynamics = make(kind, torch.float32).dynamics
    assert dynamics.keep_float32
    dt = torch.randn(3, dynamics.D.numel(), generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(dynamics(dt), dynamics(dt.float()), rtol=0, atol=0)


def test_gated_norm_keeps_its_group_size_with_fewer_channels():
    """Half of the channels, as a rank of two holds them, are normalised as in the whole."""
    norm, half = GatedRMSNorm(16, 4, 1e-5), GatedRMSNorm(8, 4, 1e-5)
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(0))
        half.weight.copy_(norm.weight[8:])
    y_BSI, z_BSI = torch.randn(2, 2, 3, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(half(y_BSI[..., 8:], z_BSI[..., 8:]), norm(y_BSI, z_BSI)[..., 8:])
