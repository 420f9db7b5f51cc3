"""One file for each architecture of transformers, and the list of them.

A file says what a recipe must be, what config.json holds, and which tensor of theirs is which of ours: both directions
are read from the same lines. A further architecture is one file, and one line here; of two that fit a recipe, the
earlier is taken.
"""

from framework.convert.architectures import (
    dots1,
    glm4_moe,
    granitemoehybrid,
    jamba,
    llama,
    mamba,
    mamba2,
    mixtral,
    nemotron_h,
    olmoe,
    qwen2_moe,
    qwen3,
    qwen3_moe,
)

TARGETS = {
    module.TARGET.model_type: module.TARGET
    for module in (llama, qwen3, mixtral, olmoe, qwen3_moe, qwen2_moe, dots1, glm4_moe, mamba, mamba2, jamba,
                   granitemoehybrid, nemotron_h)
}
