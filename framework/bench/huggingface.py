"""The same model and step in Hugging Face transformers: Qwen3-MoE with grouped_mm experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from framework.errors import UserError

if TYPE_CHECKING:
    from framework.data.batches import TrainData
    from framework.recipe import Architecture, Loaded


def twin(loaded: Loaded) -> nn.Module:
    """Qwen3MoeForCausalLM of the recipe's sizes, float32. Raises UserError naming what it cannot express."""
    architecture = loaded.architecture
    if missing := differences(architecture):
        raise UserError(f"--compare hf: Qwen3-MoE cannot express {'; '.join(missing)}")
    try:
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    except ImportError:
        raise UserError("--compare hf needs the package transformers: pip install 'upmix[hf]'") from None
    model = architecture.model
    attention, moe = (sublayer.settings for sublayer in list(architecture.sublayers())[:2])
    config = Qwen3MoeConfig(
        vocab_size=model.vocab_size, hidden_size=model.d_model, num_hidden_layers=len(architecture.layers) // 2,
        num_attention_heads=attention.num_heads, num_key_value_heads=attention.num_kv_heads,
        head_dim=attention.head_dim, attention_bias=attention.qkv_bias, rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": attention.rope_base},
        max_position_embeddings=loaded.recipe.data.seq_len, num_experts=moe.num_experts, num_experts_per_tok=moe.top_k,
        moe_intermediate_size=moe.d_expert, norm_topk_prob=moe.normalize_top_k, mlp_only_layers=[],
        decoder_sparse_step=1, tie_word_embeddings=model.tie_embeddings, use_cache=False, output_router_logits=False,
    )
    config._experts_implementation = "grouped_mm"
    return Qwen3MoeForCausalLM(config)


def differences(architecture: Architecture) -> list[str]:
    """What of an architecture Qwen3-MoE does not have, a few words each."""
    model, sublayers = architecture.model, list(architecture.sublayers())
    if [sublayer.kind for sublayer in sublayers] != ["attention", "moe"] * (len(sublayers) // 2):
        return ["a pattern other than (*E)xN"]
    neutral = type(model.multipliers)()
    found = [] if model.norm == "rmsnorm" else [f"norm {model.norm}"]
    found += [] if model.multipliers == neutral else ["multipliers"]
    for sublayer in sublayers:
        s = sublayer.settings
        if sublayer.kind == "attention":
            wanted = {"qk_norm": "head", "rope": True, "rope_fraction": 1.0, "rope_scaling": None, "window": None}
        else:
            wanted = {"activation": "swiglu", "router": "softmax_topk", "selection_bias_rate": 0.0, "gate_scale": 1.0,
                      "capacity_factor": None, "num_shared_experts": 0, "output_norm": False,
                      "load_balance_weight": 0.0, "z_loss_weight": 0.0}
        found += [f"{name} {getattr(s, name)}" for name, value in wanted.items() if getattr(s, name) != value]
    return list(dict.fromkeys(found))


def twin_steps(loaded: Loaded, data: TrainData, device: torch.device) -> Callable[[], None]:
    """A function that takes the twin's next AdamW step (fused, clipped) on the batches that the recipe's steps have."""
    recipe = loaded.recipe
    model = twin(loaded).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.optim.lr, betas=recipe.optim.betas,
                                  eps=recipe.optim.eps, weight_decay=recipe.optim.weight_decay, fused=True)
    done = 0

    def step() -> None:
        nonlocal done
        tokens_BS = torch.from_numpy(data.batch(done * recipe.data.batch_size, recipe.data.batch_size)).to(device)
        done += 1
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.training.dtype == "bfloat16"):
            # transformers shifts the labels itself; the ignored last position keeps both at the same tokens.
            loss = model(input_ids=tokens_BS[:, :-1], labels=tokens_BS[:, :-1]).loss
        loss.backward()
        if recipe.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step
