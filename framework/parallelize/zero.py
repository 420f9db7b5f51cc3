"""ZeRO through DeepSpeed: the model stays plain and whole; `parallel.zero.Zero` splits what becomes of it."""

import logging

from framework.model.language_model import LanguageModel
from framework.parallelize.compile import apply_compile
from framework.parallelize.expert import share_tokens
from framework.parallelize.recompute import apply_recompute
from parallel import Mesh

log = logging.getLogger(__name__)


def prepare_for_zero(model: LanguageModel, mesh: Mesh, compile: bool = False, recompute: str = "none") -> LanguageModel:
    """Let a model, in place, know that other ranks have other sequences of a step, and return it.

    compile, recompute: as in `parallelize`. Raises ValueError where an axis but dp_replicate and dp_shard is above 1.
    """
    split = {axis: getattr(mesh.sizes, axis) for axis in ("cp", "tp", "pp", "ep")}
    if above := [f"{axis}={degree}" for axis, degree in split.items() if degree > 1]:
        raise ValueError(f"DeepSpeed's ZeRO composes with dp_replicate and dp_shard only, not with {', '.join(above)}")
    share_tokens(model, mesh)
    apply_recompute(model, recompute)
    if compile:
        apply_compile(model)
    log.info("data parallel: ZeRO over %d ranks, by DeepSpeed", mesh.batch.size())
    return model
