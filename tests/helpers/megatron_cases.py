"""Recipes that Megatron-Core can express: pattern, and fields over those of `conversion.MODEL`."""

SHARED = {"num_shared_experts": 2, "shared_expert_router": True}
SIGMOID = {"router": "sigmoid", "selection_bias_rate": 1e-3, "gate_scale": 2.5}

OURS = {
    "dense": ("(*-)x2", dict(attention={"qk_norm": "head", "qkv_bias": True, "rope_scaling": {"factor": 4.0}},
                             tie_embeddings=True)),
    "layernorm": ("(*-)x2", dict(norm="layernorm", ffn={"activation": "gelu"}, attention={"num_kv_heads": 4})),
    "experts": ("(*E)x2", {}),
    "dense and experts": ("*-*E", dict(moe={**SHARED, **SIGMOID}, attention={"rope_fraction": 0.5, "head_dim": 12})),
    "softmax over all": ("*E*-", dict(moe={"normalize_top_k": False, "activation": "relu2", "num_shared_experts": 1},
                                      ffn={"activation": "relu2"}, attention={"rope": False})),
    "hybrid": ("ME*-M", dict(norm_eps=1e-5, mamba={"num_groups": 2}, moe=SIGMOID, attention={"rope": False})),
    "no attention": ("MM", dict(norm_eps=1e-5, tie_embeddings=True)),
    "factors": ("(*-)x2", dict(multipliers={"embedding": 2.0, "attention": 0.4, "residual": 0.3, "logits": 0.25})),
}
