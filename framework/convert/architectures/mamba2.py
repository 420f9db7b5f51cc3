"""Mamba-2 alone."""

from framework.convert.architectures import common
from framework.convert.architectures.common import BACKBONE_ENDS, mamba2_sizes, silu, unlimited_steps, whole
from framework.convert.conditions import alike, holds, the_model
from framework.convert.fields import Fixed, Size
from framework.convert.layers import Layers
from framework.convert.target import Target

WHOLE_EXPAND = holds("expand", "model.mamba.expand is no whole number (allowed: a whole one)",
                     lambda _, mamba: float(mamba.expand).is_integer(), "mamba2")
TARGET = Target(
    model_type="mamba2",
    model_class="Mamba2ForCausalLM",
    layers=Layers((("mamba2",),)),
    conditions=(*the_model(norm="rmsnorm"), *alike("mamba2"), *WHOLE_EXPAND),
    config=(
        *whole(), *silu("use_bias"), *unlimited_steps(),
        mamba2_sizes("num_heads", "head_dim", "n_groups", "state_size", "conv_kernel", "expand", "chunk_size"),
        Fixed("use_conv_bias", True),
        Size("layer_norm_epsilon", "norm_eps", 1e-5),
    ),
    tensors={"model": BACKBONE_ENDS, "mamba2": common.mamba2("norm", "mixer")},
    prefix="backbone.layers.{layer}.",
    caution=common.groups_caution,
)
