"""Mamba-1 alone."""

from typing import Any

from framework.convert.architectures.common import BACKBONE_ENDS, mamba1, silu, whole
from framework.convert.conditions import alike, every, holds, the_model
from framework.convert.fields import Computed, Config, Fixed, Means, Size
from framework.convert.layers import Layers
from framework.convert.target import Target

WHOLE_EXPAND = holds("expand", "model.mamba.expand is no whole number (allowed: a whole one)",
                     lambda _, mamba: float(mamba.expand).is_integer(), "mamba1")


def rank(key: str) -> Computed:
    """Rank of dt, which may be told as "auto": ceil(hidden_size / 16), ours where none is told."""

    def read(config: Config) -> dict[str, Any]:
        given = config.get(key, "auto")
        return {} if given == "auto" else {"mamba.dt_rank": given}

    return Computed(Size(key, "mamba.dt_rank", unused="auto").write, read)


def inner_width() -> Computed:
    """expand, or the intermediate_size that saved configs have beside it, which is what counts there."""

    def read(config: Config) -> dict[str, Any]:
        inner = config.get("intermediate_size", config.get("expand", 2) * config["hidden_size"])
        return {"mamba.expand": inner / config["hidden_size"]}

    return Computed(Size("expand", "mamba.expand").write, read)


TARGET = Target(
    model_type="mamba",
    model_class="MambaForCausalLM",
    layers=Layers((("mamba1",),)),
    conditions=(
        *the_model(norm="rmsnorm"), *alike("mamba1"), *every("mamba1", inner_norms=False), *WHOLE_EXPAND,
    ),
    config=(
        *whole(tied=True), *silu("use_bias"), rank("time_step_rank"),
        Fixed("use_conv_bias", True),
        Size("state_size", "mamba.d_state", 16),
        Size("conv_kernel", "mamba.d_conv", 4),
        inner_width(),
        Size("layer_norm_epsilon", "norm_eps", 1e-5),
        Means({"mamba.inner_norms": False}),
    ),
    tensors={"model": BACKBONE_ENDS, "mamba1": mamba1("norm", "mixer")},
    prefix="backbone.layers.{layer}.",
)
