"""The same model in megatron-core: a GPTModel of the recipe's sizes, on one GPU, with weights of its own.

Its layers come from Transformer Engine where that is installed, else from megatron-core itself.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.convert.conditions import NORMALISED, SOFTMAX, Condition, alike, every, gates, gates_of, holds, the_model
from framework.convert.fields import Mismatch, settings_of
from framework.convert.layers import Layers
from framework.errors import UserError

if TYPE_CHECKING:
    from framework.recipe import Architecture, Loaded

LAYERS = Layers((("attention",), ("moe", "ffn")))
CONDITIONS: tuple[Condition, ...] = (
    *the_model(norm="rmsnorm"), *alike("attention"), *alike("ffn"), *alike("moe"), *gates(NORMALISED, SOFTMAX),
    *every("attention", qk_norm=("none", "head"), rope=True, rope_scaling=None, window=None),
    *every("ffn", activation="swiglu"),
    *every("moe", activation="swiglu", gate_scale=1.0, selection_bias_rate=0.0, capacity_factor=None,
           shared_expert_router=False, output_norm=False, load_balance_weight=0.0, z_loss_weight=0.0),
    *holds("one choice", "gates of experts are normalised over one (allowed: softmax over all, where top_k is 1)",
           lambda _, moe: moe.top_k > 1 or not moe.normalize_top_k, "moe"),
)


def megatron_model(loaded: Loaded, device: torch.device) -> nn.Module:
    """A GPTModel in float32. The process must be in a process group, of one rank.

    Raises UserError without a GPU, without the package, or with every reason why it cannot express the recipe.
    """
    require_expressible(loaded)
    if device.type != "cuda":
        raise UserError("--compare megatron: megatron-core runs on a GPU, and none is here; allowed: --compare hf")
    return build(loaded, fused=importlib.util.find_spec("transformer_engine") is not None)


def require_expressible(loaded: Loaded) -> None:
    """Raise UserError with every mismatch."""
    if importlib.util.find_spec("megatron") is None:
        raise UserError("--compare megatron needs the package megatron-core: pip install megatron-core")
    if wrong := mismatches(loaded):
        raise UserError(f"--compare megatron: a GPTModel cannot express {'; '.join(wrong)}")


def mismatches(loaded: Loaded) -> list[str]:
    """Every reason why a GPTModel cannot be the recipe's model, or train as it does; none: it can."""
    architecture, recipe = loaded.architecture, loaded.recipe
    try:
        LAYERS.letters(architecture)
    except Mismatch as reason:
        return [str(reason)]
    neutral = type(architecture.model.multipliers)()
    found = [text for condition in CONDITIONS if (text := condition.mismatch(architecture))]
    found += ["model.multipliers (allowed: none)"] if architecture.model.multipliers != neutral else []
    found += ["data.isolate_documents (allowed: false)"] if recipe.data.isolate_documents else []
    found += ["training.recompute (allowed: none)"] if recipe.training.recompute != "none" else []
    return found


def config_fields(architecture: Architecture) -> dict[str, Any]:
    """What TransformerConfig is given of an architecture without mismatches."""
    model = architecture.model
    attention, ffn, moe = (settings_of(architecture, section) for section in ("attention", "ffn", "moe"))
    letters = LAYERS.letters(architecture)
    fields: dict[str, Any] = dict(
        num_layers=len(letters), hidden_size=model.d_model, num_attention_heads=attention.num_heads,
        num_query_groups=attention.num_kv_heads, kv_channels=attention.head_dim, layernorm_epsilon=model.norm_eps,
        normalization="RMSNorm", qk_layernorm=attention.qk_norm == "head", add_qkv_bias=attention.qkv_bias,
        ffn_hidden_size=4 * model.d_model if ffn is None else ffn.d_ff, gated_linear_unit=True,
        activation_func=F.silu, add_bias_linear=False, hidden_dropout=0.0, attention_dropout=0.0,
        gradient_accumulation_fusion=False, bias_dropout_fusion=False,
    )
    if moe is not None:
        shared = moe.num_shared_experts * moe.d_expert
        fields |= dict(
            num_moe_experts=moe.num_experts, moe_router_topk=moe.top_k, moe_ffn_hidden_size=moe.d_expert,
            moe_layer_freq=[int(layer.endswith("E")) for layer in letters],
            moe_router_pre_softmax=gates_of(moe) == SOFTMAX, moe_router_load_balancing_type="none",
            moe_aux_loss_coeff=0.0, moe_shared_expert_intermediate_size=shared or None,
        )
    return fields


def model_fields(loaded: Loaded) -> dict[str, Any]:
    """What GPTModel is given beside its config and the classes of its layers."""
    model, attention = loaded.architecture.model, settings_of(loaded.architecture, "attention")
    return dict(
        vocab_size=model.vocab_size, max_sequence_length=loaded.recipe.data.seq_len, position_embedding_type="rope",
        rotary_base=int(attention.rope_base), rotary_percent=attention.rope_fraction,
        share_embeddings_and_output_weights=model.tie_embeddings,
    )


def build(loaded: Loaded, fused: bool) -> nn.Module:
    """The GPTModel; fused: of Transformer Engine's layers, else as far as a CPU can, which builds it but cannot run it.

    Experts are then a loop of single ones, and tokens travel by all-gather.
    """
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer import TransformerConfig

    parallel_state.initialize_model_parallel()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        tensor_parallel.model_parallel_cuda_manual_seed(loaded.recipe.training.seed)
    config = TransformerConfig(
        **config_fields(loaded.architecture), moe_grouped_gemm=fused, use_cpu_initialization=not on_gpu,
        moe_token_dispatcher_type="alltoall" if on_gpu else "allgather",
    )
    layers = get_gpt_decoder_block_spec(config, use_transformer_engine=fused, normalization="RMSNorm")
    return GPTModel(config, layers, **model_fields(loaded))


def loss(model: nn.Module, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
    """The mean cross entropy of the targets, in nats a token."""
    position_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS)
    return model(tokens_BS, position_BS, None, labels=targets_BS).mean()
