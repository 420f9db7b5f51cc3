"""Whole models against Hugging Face transformers with copied weights: logits and every gradient."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from framework.model import Context  # noqa: E402

SEQ_LEN = 24
SIZES = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, attn_implementation="eager",
)
NAMES = {
    "embedding": "model.embed_tokens", "final_norm": "model.norm", "unembedding": "lm_head",
    "0.norm": "input_layernorm", "0.block.q": "self_attn.q_proj", "0.block.k": "self_attn.k_proj",
    "0.block.v": "self_attn.v_proj", "0.block.out": "self_attn.o_proj", "0.block.q_norm": "self_attn.q_norm",
    "0.block.k_norm": "self_attn.k_norm", "1.norm": "post_attention_layernorm", "1.block.gate": "mlp.gate_proj",
    "1.block.up": "mlp.up_proj", "1.block.down": "mlp.down_proj",
}


def rope(theta: float = 10000.0, rope_type: str = "default", **more) -> dict:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **more}}


CASES = {
    "bias_and_base": (
        "Qwen2", dict(rms_norm_eps=1e-3, **rope(500.0)),
        dict(attention=dict(qkv_bias=True, rope_base=500.0), norm_eps=1e-3),
    ),
    "llama3_scaling": (
        "Llama", rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=16),
        dict(attention=dict(rope_scaling=dict(original_seq_len=16))),
    ),
    "head_dim_and_tied": (
        "Llama", dict(head_dim=12, tie_word_embeddings=True, **rope()),
        dict(attention=dict(head_dim=12), tie_embeddings=True),
    ),
    "norm_per_head": ("Qwen3", dict(head_dim=8, **rope(1e6)), dict(attention=dict(qk_norm="head", rope_base=1e6))),
    "window": ("Mistral", dict(sliding_window=5, head_dim=8, **rope()), dict(attention=dict(window=5))),
    "partial_rotary_and_layernorm": (
        "StableLm", dict(use_qkv_bias=True, layer_norm_eps=1e-5, **rope(partial_rotary_factor=0.25)),
        dict(attention=dict(rope_fraction=0.25, qkv_bias=True), norm="layernorm"),
    ),
    "multipliers": (
        "Granite", dict(embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.3,
                        logits_scaling=4.0, **rope()),
        dict(multipliers=dict(embedding=3.0, attention=0.5, residual=0.3, logits=0.25)),
    ),
}


def theirs(family: str, **options):
    config = getattr(transformers, family + "Config")(**{"rms_norm_eps": 1e-5, **SIZES, **options})
    return getattr(transformers, family + "ForCausalLM")(config)


def their_name(name: str) -> str:
    """The Hugging Face name of a parameter of the pattern (*-)x2."""
    part, kind = name.rsplit(".", 1)
    if part in NAMES:
        return f"{NAMES[part]}.{kind}"
    _, index, rest = part.split(".", 2)
    return f"model.layers.{int(index) // 2}.{NAMES[f'{int(index) % 2}.{rest}']}.{kind}"


def picker(parameter):
    return lambda get: get(parameter)


def compare(ours, oracle, pairs) -> None:
    """pairs: (name, our parameter, pick), where pick(get) finds its counterpart in get(a parameter of the oracle)."""
    torch.manual_seed(1)
    tokens_BS = torch.randint(0, 61, (2, SEQ_LEN))
    logits_BSV, expected_BSV = ours(tokens_BS, Context()), oracle(tokens_BS).logits
    torch.testing.assert_close(logits_BSV, expected_BSV, rtol=2e-5, atol=2e-5)
    ours(tokens_BS[:, :-1], Context(), tokens_BS[:, 1:]).backward()
    torch.nn.functional.cross_entropy(
        oracle(tokens_BS[:, :-1]).logits.flatten(0, 1), tokens_BS[:, 1:].flatten(), reduction="sum"
    ).backward()
    for name, parameter, pick in pairs:
        gradient = pick(lambda theirs: theirs.grad).reshape(parameter.shape)
        difference = (parameter.grad - gradient).norm() / gradient.norm()
        assert difference < 2e-5, (name, float(difference))


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(case, random_model):
    family, options, fields = CASES[case]
    attention = dict(num_heads=4, num_kv_heads=2) | fields.get("attention", {})
    ours = random_model(pattern="(*-)x2", ffn=dict(d_ff=48), **(fields | dict(attention=attention)))
    oracle = theirs(family, **options)
    mine, their = dict(ours.named_parameters()), dict(oracle.named_parameters())
    assert {their_name(name) for name in mine} == set(their)
    with torch.no_grad():
        for name, parameter in mine.items():
            their[their_name(name)].copy_(parameter)
    compare(ours, oracle, [(name, parameter, picker(their[their_name(name)])) for name, parameter in mine.items()])


def test_parallel_branches_and_gelu(random_model):
    """GPT-NeoX adds attention and feed-forward, each with its own LayerNorm, under one residual."""
    ours = random_model(
        pattern="[*-]x2", norm="layernorm", ffn=dict(d_ff=48, activation="gelu"),
        attention=dict(num_heads=4, rope_fraction=0.5),
    )
    oracle = theirs(
        "GPTNeoX", attention_bias=False, use_parallel_residual=True, hidden_act="gelu", layer_norm_eps=1e-5,
        tie_word_embeddings=False, **rope(partial_rotary_factor=0.5),
    )
    pairs = [(name, parameter, neox_picker(name, oracle)) for name, parameter in ours.named_parameters()]
    with torch.no_grad():
        for layer in oracle.gpt_neox.layers:
            layer.mlp.dense_h_to_4h.bias.zero_()
            layer.mlp.dense_4h_to_h.bias.zero_()
        for _, parameter, pick in pairs:
            target = pick(lambda theirs: theirs.data)
            target.copy_(parameter.view_as(target))
    compare(ours, oracle, pairs)


def neox_picker(name: str, oracle):
    """A function of get(parameter) that finds our parameter in theirs; q, k, v lie interleaved per head in one."""
    whole = {
        "embedding": "gpt_neox.embed_in", "final_norm": "gpt_neox.final_layer_norm", "unembedding": "lm_head",
        "branches.0.norm": "input_layernorm", "branches.1.norm": "post_attention_layernorm",
        "branches.0.block.out": "attention.dense", "branches.1.block.up": "mlp.dense_h_to_4h",
        "branches.1.block.down": "mlp.dense_4h_to_h",
    }
    part, kind = name.rsplit(".", 1)
    layer, rest = (None, part) if not part.startswith("layers") else part.split(".", 2)[1:]
    prefix = "" if layer is None else f"gpt_neox.layers.{layer}."
    if rest in whole:
        return picker(oracle.get_parameter(f"{prefix}{whole[rest]}.{kind}"))
    index = "qkv".index(rest[-1])
    parameter = oracle.get_parameter(f"{prefix}attention.query_key_value.{kind}")
    return lambda get: get(parameter).view(4, 3, 8, 32)[:, index]


def test_norm_over_the_full_width(random_model):
    """OLMo 2 normalises queries and keys over all heads together."""
    from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention, Olmo2RotaryEmbedding

    config = transformers.Olmo2Config(**SIZES, rms_norm_eps=1e-5, **rope())
    oracle, rotary = Olmo2Attention(config, layer_idx=0), Olmo2RotaryEmbedding(config)
    ours = random_model(pattern="*", attention=dict(num_heads=4, num_kv_heads=2, qk_norm="full")).layers["0"].block
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    mine, their = dict(ours.named_parameters()), {}
    for name in mine:
        module, kind = name.split(".")
        their[name] = oracle.get_parameter(f"{names.get(module, module)}.{kind}")
    with torch.no_grad():
        for name, parameter in mine.items():
            their[name].copy_(parameter)
    x_BSD = torch.randn(2, SEQ_LEN, 32)
    causal = torch.full((SEQ_LEN, SEQ_LEN), float("-inf")).triu(1)[None, None]
    tables = rotary(x_BSD, torch.arange(SEQ_LEN)[None])
    expected_BSD = oracle(x_BSD, tables, causal)[0]
    y_BSD = ours(x_BSD, Context())
    torch.testing.assert_close(y_BSD, expected_BSD, rtol=1e-5, atol=1e-5)
    (y_BSD * x_BSD).sum().backward()
    (expected_BSD * x_BSD).sum().backward()
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter.grad, their[name].grad, rtol=1e-4, atol=1e-5, msg=name)
