"""Checkpoints of llm-random and nano as their code saves them, and what has to be stated beside each."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from tests.helpers.conversion import shake
from tests.helpers.research_models import (
    HEADS,
    Lizrd,
    LizrdAttention,
    LizrdExperts,
    LizrdSwiGLU,
    MambaSSM,
    Nano,
    NanoAttention,
    NanoDense,
    NanoExperts,
    lizrd_dense,
)

NO_BIASES = ("model.norm=layernorm",)
RMS = ("model.norm=rmsnorm", f"model.norm_eps={torch.finfo(torch.float32).eps}")
MOE = ("model.moe.top_k=2", "model.moe.capacity_factor=1.25")
ONE = ("model.moe.top_k=1", "model.moe.capacity_factor=null")
LLAMA = ("model.attention.rope_base=500000", "model.attention.rope_scaling={factor: 32}")
PLAIN = ("model.attention.rope_base=10000", "model.attention.rope_scaling=null")
NUM_HEADS = (f"model.attention.num_heads={HEADS}",)
NO_ROPE = (*NUM_HEADS, "model.attention.rope=false")


def lizrd(norm: str, num_blocks: int = 2, **sublayers) -> Lizrd:
    """Each block with new ones of these sublayers, in this order."""
    return Lizrd(norm, [{name: make() for name, make in sublayers.items()} for _ in range(num_blocks)])


def attention(apart: bool = False, rope: bool = True):
    return lambda: LizrdAttention(apart, rope)


LIZRD = {
    "dense": (lambda: lizrd("layernorm", attention=attention(), feedforward=lambda: lizrd_dense(False)), "(*-)x2", ()),
    "three matrices, no biases": (
        lambda: lizrd("layernorm without biases", attention=attention(apart=True),
                      feedforward=lambda: lizrd_dense(False)), "(*-)x2", NO_BIASES),
    "swiglu, own norm": (
        lambda: lizrd("own rmsnorm", attention=attention(), feedforward=LizrdSwiGLU), "(*-)x2", ()),
    "no positions": (
        lambda: lizrd("rmsnorm", attention=attention(rope=False), feedforward=LizrdSwiGLU), "(*-)x2",
        (*RMS, *NO_ROPE)),
    **{f"{kind} experts": (
        lambda kind=kind, top_k=top_k: lizrd("layernorm", attention=attention(),
                                             feedforward=lambda: LizrdExperts(kind, top_k)), "(*E)x2", stated)
       for kind, top_k, stated in (("relu", 2, MOE), ("gated", 2, MOE), ("swi_glu", 1, ONE), ("direct", 1, ONE))},
    "MoE-Mamba": (
        lambda: lizrd("layernorm", mamba=MambaSSM, feedforward=lambda: LizrdExperts("relu", 1)), "(mE)x2", ONE),
    "feed-forward first, every other sparse": (
        lambda: Lizrd("layernorm", [
            {"feedforward": lizrd_dense(False), "attention": LizrdAttention(False, True)},
            {"feedforward": LizrdExperts("relu", 2), "attention": LizrdAttention(False, True)}]), "-*E*", MOE),
}


def nano(norm: str, layer, kv_heads: int = HEADS, scaled: bool = False, stored: bool = False, nested: bool = False):
    """Two blocks."""
    base = 500000.0 if scaled else 10000.0
    return Nano(norm, [(NanoAttention(kv_heads, base, scaled, stored), layer()) for _ in range(2)], nested)


NANO = {
    "dense": (lambda: nano("layernorm without biases", lambda: NanoDense(False), nested=True), "(*-)x2",
              ("model.norm=layernorm", "model.norm_eps=1e-5", *PLAIN, *NUM_HEADS)),
    "grouped, gated, scaled": (
        lambda: nano("rmsnorm", lambda: NanoDense(True), kv_heads=2, scaled=True), "(*-)x2",
        (*RMS, *LLAMA, *NUM_HEADS)),
    "buffers tell heads": (
        lambda: nano("rmsnorm", lambda: NanoDense(True), scaled=True, stored=True), "(*-)x2", (*RMS, *LLAMA)),
    "experts": (
        lambda: nano("rmsnorm", lambda: NanoExperts(2), kv_heads=1), "(*E)x2", (*RMS, *PLAIN, *MOE, *NUM_HEADS)),
}


def made(make) -> nn.Module:
    """A random model, whose own norm, if it has that, shifts nothing."""
    torch.manual_seed(0)
    model = make().eval()
    shake(model)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.b"):
            nn.init.zeros_(parameter)
    return model


def save(model: nn.Module, path: Path, **more) -> Path:
    """As llm-random does, with an optimizer that has moved."""
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3, dtype=torch.int64)).sum().backward()
    optimizer.step = torch.no_grad()(lambda: None)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7,
                "logger": {"run_id": ["X-1"]}, "args_override": {"lr": 1e-3}, **more}, path)
    return path


def save_sharded(model: nn.Module, folder: Path) -> Path:
    """Keys as nano's sharded training has them: plain values beside tensors, and a state of training in the folder."""
    names = {f"app.model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {f"app.optim.state.{name}.exp_avg": torch.ones(3) for name in model.state_dict()}
    dcp.save({**names, **moments, "app.optim.param_groups.lr": 1e-3, "app.scheduler.last_epoch": 3,
              "app.scheduler.lr_lambdas": [None, {}]}, checkpoint_id=folder, no_dist=True)
    torch.save({"next_step": 4, "run_id": None}, folder / "training_state.pt")
    return folder
