"""Megatron-Core's models from its arguments.

Built of its own modules they are saved under the names that Transformer Engine's modules give: a specification maps its
norms to them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def start() -> None:
    """One rank, and a random state for what is initialised, in a process in which `pretend_cuda` was called."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(0)


def build(kind: str, spec: str, given: dict[str, Any], fused: bool = False, **further: Any) -> torch.nn.Module:
    """GPTModel or MambaModel, float32 in evaluation mode. given: the arguments. kind, spec: as `tables` has them.

    fused: of Transformer Engine's modules, else of Megatron-Core's own. further: fields of its TransformerConfig.
    """
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.mamba import MambaModel

    config = _config(given, {"moe_token_dispatcher_type": "alltoall", **further})
    rope = {name: given[name] for name in ("rotary_base", "rotary_percent") if name in given}
    same = {"vocab_size": given["padded_vocab_size"], "max_sequence_length": given["seq_length"],
            "position_embedding_type": given["position_embedding_type"],
            "share_embeddings_and_output_weights": not given["untie_embeddings_and_output_weights"], **rope}
    if kind == "hybrid":
        pattern = given["hybrid_override_pattern"]
        model = MambaModel(config, _stack(config, fused), hybrid_override_pattern=pattern, **same)
    else:
        scaling = {name: given[theirs] for name, theirs in (
            ("rope_scaling", "use_rope_scaling"), ("rope_scaling_factor", "rope_scaling_factor")) if theirs in given}
        model = GPTModel(config, _decoder(config, spec, fused), **same, **scaling)
    return model.eval()


def _config(given: dict[str, Any], further: dict[str, Any]) -> Any:
    from megatron.core.activations import squared_relu
    from megatron.core.transformer import TransformerConfig

    names = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size",
             "normalization", "layernorm_epsilon", "qk_layernorm", "add_qkv_bias", "add_bias_linear", "hidden_dropout",
             "attention_dropout", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_layer_freq",
             "moe_shared_expert_gate", "moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax",
             "moe_router_dtype", "moe_router_topk_scaling_factor", "moe_router_enable_expert_bias",
             "mamba_state_dim", "mamba_head_dim", "mamba_num_heads", "mamba_num_groups", "is_hybrid_model")
    activation = F.silu if given["swiglu"] else squared_relu if given["squared_relu"] else F.gelu
    return TransformerConfig(
        **{name: given[name] for name in names if given.get(name) is not None},
        num_moe_experts=given.get("num_experts"), gated_linear_unit=given["swiglu"], activation_func=activation,
        bias_activation_fusion=False, use_mamba_mem_eff_path=False, **further)


def _decoder(config: Any, spec: str, fused: bool) -> Any:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.moe.moe_layer import MoELayer

    found = get_gpt_decoder_block_spec(config, use_transformer_engine=fused, normalization=config.normalization)
    for layer in found.layer_specs:
        if spec == "te" and not fused and layer.submodules.mlp.module is MoELayer:
            layer.submodules.sharded_state_dict_keys_map.pop("pre_mlp_layernorm.", None)
    return found


def _stack(config: Any, fused: bool) -> Any:
    if fused:
        from megatron.core.models.mamba.mamba_layer_specs import mamba_stack_spec

        return mamba_stack_spec
    return own_stack(config)


def own_stack(config: Any) -> Any:
    """What `mamba_stack_spec` has of Transformer Engine, of Megatron-Core's own modules."""
    import megatron.core.ssm.mamba_block as mamba_block
    from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
    from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer import ModuleSpec, TransformerLayer, TransformerLayerSubmodules
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    mamba_block.TENorm = WrappedTorchNorm  # of the last norm, which no specification names
    add = get_bias_dropout_add
    mixer = ModuleSpec(MambaMixer, submodules=MambaMixerSubmodules(ColumnParallelLinear, RowParallelLinear))
    attention = ModuleSpec(SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=(
        SelfAttentionSubmodules(linear_qkv=ColumnParallelLinear, core_attention=DotProductAttention,
                                linear_proj=RowParallelLinear)))
    dense = ModuleSpec(MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear))
    experts = get_moe_module_spec(use_te=False, num_experts=config.num_moe_experts or 1, moe_grouped_gemm=False)
    return ModuleSpec(mamba_block.MambaStack, submodules=mamba_block.MambaStackSubmodules(
        mamba_layer=ModuleSpec(MambaLayer, submodules=MambaLayerSubmodules(
            norm=WrappedTorchNorm, mixer=mixer, mamba_bda=add,
            sharded_state_dict_keys_map={"norm.": "mixer.in_proj.layer_norm_"})),
        attention_layer=ModuleSpec(TransformerLayer, submodules=TransformerLayerSubmodules(
            input_layernorm=WrappedTorchNorm, self_attention=attention, self_attn_bda=add,
            sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"})),
        mlp_layer=ModuleSpec(MLPLayer, submodules=TransformerLayerSubmodules(
            pre_mlp_layernorm=WrappedTorchNorm, mlp=dense, mlp_bda=add,
            sharded_state_dict_keys_map={"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"})),
        moe_layer=ModuleSpec(TransformerLayer, submodules=TransformerLayerSubmodules(
            pre_mlp_layernorm=WrappedTorchNorm, mlp=experts, mlp_bda=add))))
