"""The Mamba blocks against Hugging Face's mixers with copied weights: output and every gradient."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from framework.model.context import Context  # noqa: E402
from framework.model.mamba1 import Mamba1  # noqa: E402
from framework.model.mamba2 import Mamba2  # noqa: E402
from framework.recipe.schema import Mamba  # noqa: E402

D_MODEL, SEQ_LEN, EPS = 16, 21, 1e-3


def randomised(mixer):
    """Weights that no default hides, and decays that matter over the sequence."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.dim() == 1 else 0.2))
            if name.endswith("norm.weight"):
                parameter.add_(1.0)
    return mixer


def mamba():
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = transformers.MambaConfig(
        hidden_size=D_MODEL, state_size=4, time_step_rank=3, conv_kernel=4, expand=2, num_hidden_layers=1)
    return randomised(MambaMixer(config, layer_idx=0))


def jamba():
    from transformers.models.jamba.modeling_jamba import JambaMambaMixer

    config = transformers.JambaConfig(
        hidden_size=D_MODEL, mamba_d_state=4, mamba_dt_rank=3, mamba_d_conv=4, mamba_expand=2, rms_norm_eps=EPS,
        num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1, use_mamba_kernels=True)
    return randomised(JambaMambaMixer(config, layer_idx=0))


def mamba2(num_groups):
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = transformers.Mamba2Config(
        hidden_size=D_MODEL, state_size=6, num_heads=4, head_dim=8, n_groups=num_groups, conv_kernel=4, expand=2,
        chunk_size=8, layer_norm_epsilon=EPS, num_hidden_layers=1, time_step_limit=(0.0, float("inf")))
    return randomised(Mamba2Mixer(config, layer_idx=0))


def from_mamba(mixer):
    """Our names for the weights of a Mamba-1 mixer; slices of its parameters, or of their gradients."""
    inner = D_MODEL * 2
    x, z = mixer["in_proj.weight"].split(inner)
    dt_low, B, C = mixer["x_proj.weight"].split([3, 4, 4])
    named = {
        "x.weight": x, "z.weight": z, "dt_low.weight": dt_low, "B.weight": B, "C.weight": C,
        "conv.weight": mixer["conv1d.weight"][:, 0], "conv.bias": mixer["conv1d.bias"],
        "dt.weight": mixer["dt_proj.weight"], "dynamics.dt_bias": mixer["dt_proj.bias"],
        "dynamics.A_log": mixer["A_log"], "dynamics.D": mixer["D"], "out.weight": mixer["out_proj.weight"],
    }
    for name in ("dt", "B", "C"):
        if f"{name.lower()}_layernorm.weight" in mixer:
            named[f"{name}_norm.weight"] = mixer[f"{name.lower()}_layernorm.weight"]
    return named


def from_mamba2(mixer):
    """Our names for the weights of a Mamba-2 mixer; slices of its parameters, or of their gradients."""
    inner, heads = D_MODEL * 2, mixer["D"].numel()
    group_width = (mixer["conv1d.bias"].numel() - inner) // 2
    z, x, B, C, dt = mixer["in_proj.weight"].split([inner, inner, group_width, group_width, heads])
    named = {
        "z.weight": z, "x.weight": x, "B.weight": B, "C.weight": C, "dt.weight": dt,
        "dynamics.A_log": mixer["A_log"], "dynamics.D": mixer["D"], "dynamics.dt_bias": mixer["dt_bias"],
        "norm.weight": mixer["norm.weight"], "out.weight": mixer["out_proj.weight"],
    }
    weights = mixer["conv1d.weight"][:, 0].split([inner, group_width, group_width])
    biases = mixer["conv1d.bias"].split([inner, group_width, group_width])
    for name, weight, bias in zip("xBC", weights, biases, strict=True):
        named |= {f"conv_{name}.weight": weight, f"conv_{name}.bias": bias}
    return named


CASES = {
    "mamba": (mamba, Mamba1, from_mamba, Mamba(d_state=4, dt_rank=3, chunk_size=8)),
    "jamba": (jamba, Mamba1, from_mamba, Mamba(d_state=4, dt_rank=3, chunk_size=8, inner_norms=True)),
    "mamba2, 1 group": (lambda: mamba2(1), Mamba2, from_mamba2, Mamba(d_state=6, head_dim=8, chunk_size=5)),
    "mamba2, 2 groups": (
        lambda: mamba2(2), Mamba2, from_mamba2, Mamba(d_state=6, head_dim=8, num_groups=2, chunk_size=5)),
}


def gradients_of(module, x_BSD, run):
    """The output, the gradient of the input, and those of all parameters by name."""
    x_BSD = x_BSD.clone().requires_grad_()
    y_BSD = run(x_BSD)
    y_BSD.backward(torch.linspace(-1, 1, y_BSD.numel()).view(y_BSD.shape))
    return y_BSD, x_BSD.grad, {name: parameter.grad for name, parameter in module.named_parameters()}


def assert_near(found, expected, name, tolerance=2e-6):
    assert (found - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize("case", CASES)
def test_block_equals_the_mixer(case):
    make_mixer, block_class, renamed, section = CASES[case]
    mixer = make_mixer()
    block = block_class(D_MODEL, section, EPS)
    block.load_state_dict(renamed(dict(mixer.named_parameters())))
    x_BSD = torch.randn(2, SEQ_LEN, D_MODEL, generator=torch.Generator().manual_seed(1))
    y_BSD, dx_BSD, gradients = gradients_of(block, x_BSD, lambda x: block(x, Context()))
    expected_y, expected_dx, expected_gradients = gradients_of(mixer, x_BSD, mixer)
    assert_near(y_BSD, expected_y, "output")
    assert_near(dx_BSD, expected_dx, "input")
    expected_gradients = renamed(expected_gradients)
    assert expected_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # The mixer is float32 through and through: both sides round sums over tokens, differently on each processor.
        assert_near(gradient, expected_gradients[name], name, 5e-6)
