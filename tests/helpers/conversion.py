"""Tiny runs with random weights, models of transformers, and what both compute."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from framework.convert import Options, from_hf, to_hf
from framework.model import Context, build_language_model
from framework.parametrization import initialize, widths
from framework.recipe import dump, load_recipe
from framework.surgery import find_source
from framework.training import load_run
from framework.training.checkpoint import Checkpointer, model_tensors
from framework.training.peers import Peers
from tests.helpers.upcycling import state

VOCAB = 61
MODEL = {
    "d_model": 32, "vocab_size": VOCAB, "norm_eps": 1e-3, "attention": {"num_heads": 4, "num_kv_heads": 2},
    "ffn": {"d_ff": 48}, "moe": {"num_experts": 4, "top_k": 2, "d_expert": 24},
    "mamba": {"d_state": 6, "head_dim": 16, "chunk_size": 8},
}

HEADS = {"qk_norm": "head"}
SIGMOID = {"router": "sigmoid", "selection_bias_rate": 1e-3, "gate_scale": 2.5}
NO_POSITIONS = {"rope": False}
JAMBA = dict(mamba={"inner_norms": True}, attention=NO_POSITIONS, moe={"normalize_top_k": False, "d_expert": 48})
RELU2 = dict(ffn={"activation": "relu2"}, moe={"activation": "relu2", **SIGMOID}, attention=NO_POSITIONS)
FACTORS = {"embedding": 3.0, "attention": 0.4, "residual": 0.3, "logits": 0.25}

OURS = {
    "llama": ("llama", "(*-)x2", {}),
    "llama, tied, llama3 rope": (
        "llama", "(*-)x2", dict(tie_embeddings=True, attention={
            "head_dim": 12, "rope_scaling": {"original_seq_len": 16}, "rope_base": 500.0})),
    "qwen3": ("qwen3", "(*-)x2", dict(attention=HEADS)),
    "mixtral": ("mixtral", "(*E)x2", {}),
    "mixtral, window": ("mixtral", "(*E)x2", dict(attention={"window": 5}, moe={"router": "topk_softmax"})),
    "olmoe": ("olmoe", "(*E)x2", dict(attention={"qk_norm": "full"}, moe={"normalize_top_k": False})),
    "qwen3_moe": ("qwen3_moe", "*-*E*E", dict(attention=HEADS)),
    "qwen3_moe, softmax": ("qwen3_moe", "(*E)x2", dict(attention=HEADS, moe={"normalize_top_k": False})),
    "qwen2_moe": (
        "qwen2_moe", "*-*E", dict(attention={"qkv_bias": True},
                                  moe={"num_shared_experts": 2, "shared_expert_router": True})),
    "qwen2_moe, no gate": ("qwen2_moe", "(*E)x2", dict(moe={"num_shared_experts": 1})),
    "qwen2_moe, not shared": ("qwen2_moe", "(*E)x2", dict(moe={"normalize_top_k": False})),
    "dots1": ("dots1", "*-*E", dict(attention=HEADS, moe={"num_shared_experts": 1, **SIGMOID})),
    "dots1, no bias": ("dots1", "*E", dict(attention=HEADS, moe={"router": "sigmoid", "normalize_top_k": False})),
    "glm4_moe": ("glm4_moe", "*-*E", dict(attention={"qkv_bias": True}, moe={"num_shared_experts": 2, **SIGMOID})),
    "glm4_moe, partial rotary": (
        "glm4_moe", "*E*E", dict(attention={"rope_fraction": 0.5, **HEADS}, moe={"router": "sigmoid"})),
    "jamba": ("jamba", "m-*Em-*E", JAMBA),
    "jamba, no attention": ("jamba", "(mE)x2", JAMBA),
    "jamba, dense": ("jamba", "m-*-m-", JAMBA),
    "granitemoehybrid": ("granitemoehybrid", "ME*EME", dict(multipliers=FACTORS, attention=NO_POSITIONS)),
    "granitemoehybrid, rope and shared": ("granitemoehybrid", "ME*E", dict(moe={"num_shared_experts": 1})),
    "granitemoehybrid, dense": ("granitemoehybrid", "M-*-", dict(attention=NO_POSITIONS, mamba={"num_groups": 2})),
    "granitemoehybrid, no attention": ("granitemoehybrid", "MEME", {}),
    "nemotron_h": ("nemotron_h", "ME*E-M", RELU2 | dict(moe={"num_shared_experts": 1, **RELU2["moe"]})),
    "nemotron_h, inner width of its own": ("nemotron_h", "ME*", RELU2 | dict(mamba={"expand": 1.5})),
    "nemotron_h, no attention": ("nemotron_h", "MEME", RELU2),
    "mamba": ("mamba", "mm", {}),
    "mamba, tied": ("mamba", "mm", dict(tie_embeddings=True, mamba={"dt_rank": 3, "expand": 3})),
    "mamba2": ("mamba2", "MM", {}),
    "mamba2, groups": ("mamba2", "MM", dict(mamba={"num_groups": 2}, tie_embeddings=True)),
}
"""Name of a case -> the target, and pattern and fields of the recipe."""

SIZES = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=48, max_position_embeddings=64)
DEEPSEEK = dict(moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1)
QWEN = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
MAMBA2 = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=6, num_heads=4, head_dim=16)
GRANITE = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=6, mamba_chunk_size=8, attention_multiplier=0.3,
               embedding_multiplier=2.0, logits_scaling=4.0, residual_multiplier=0.3)

THEIRS = {
    "llama": ("llama", dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0})),
    "qwen3": ("qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    "mixtral": ("mixtral", dict(num_local_experts=4, sliding_window=7)),
    "olmoe": ("olmoe", dict(num_experts=4, num_experts_per_tok=2, intermediate_size=24, pad_token_id=None)),
    "qwen3_moe": ("qwen3_moe", dict(head_dim=16, decoder_sparse_step=2, norm_topk_prob=True, **QWEN)),
    "qwen2_moe": ("qwen2_moe", dict(shared_expert_intermediate_size=72, **QWEN)),
    "dots1": ("dots1", dict(n_shared_experts=2, first_k_dense_replace=1, head_dim=16, routed_scaling_factor=1.5,
                            **DEEPSEEK)),
    "glm4_moe": ("glm4_moe", dict(n_shared_experts=1, first_k_dense_replace=1, head_dim=16, attention_bias=True,
                                  use_qk_norm=True, num_mtp_layers=0, **DEEPSEEK)),
    "jamba": ("jamba", dict(num_experts=4, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=6, mamba_dt_rank=3,
                            num_hidden_layers=4)),
    "granitemoehybrid": (
        "granitemoehybrid", dict(num_local_experts=4, layer_types=["mamba", "attention"], shared_intermediate_size=96,
                                 **GRANITE)),
    "granitemoehybrid, rope, dense": (
        "granitemoehybrid", dict(num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope",
                                 layer_types=["attention", "mamba"], shared_intermediate_size=40, **GRANITE)),
    "nemotron_h": (
        "nemotron_h", dict(layers_block_type=["mamba", "moe", "attention", "mlp"], mamba_num_heads=4, mamba_head_dim=16,
                           ssm_state_size=6, n_groups=1, head_dim=16, moe_shared_expert_intermediate_size=48,
                           time_step_min=1e-30, chunk_size=8, **DEEPSEEK)),
    "mamba": ("mamba", dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=6, time_step_rank=3)),
    "mamba2": ("mamba2", dict(n_groups=1, **MAMBA2)),
}
"""Name of a case -> model_type and entries of its config."""


def merged(base: dict, changes: dict) -> dict:
    """Sections of changes over those of the base."""
    return {key: (base[key] | changes[key] if isinstance(changes.get(key), dict) and key in base else
                  changes.get(key, base.get(key))) for key in base | changes}


def make_run(path: Path, pattern: str, other: dict | None = None, **changes) -> Path:
    """A run folder with a checkpoint of random weights, in which no norm, bias or decay is neutral."""
    path.mkdir(parents=True)
    recipe = {"model": merged(MODEL, {"pattern": pattern, **changes}), "data": {"seq_len": 64}} | (other or {})
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(str(path / "recipe.yaml"))
    (path / "recipe.yaml").write_text(dump(loaded.recipe))
    model = build_language_model(loaded.architecture, widths(loaded.recipe, loaded.architecture))
    initialize(model, loaded.recipe.parametrization.init, 0)
    shake(model)
    with Checkpointer(path / "checkpoints", Peers()) as checkpointer:
        checkpointer.save(3, model_tensors(model), {}, background=False)
    return path


@torch.no_grad()
def shake(model: torch.nn.Module) -> None:
    """Random parameters, and buffers of selection; matrices large enough that activations bend."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.add_(0.3 * noise)
        else:
            parameter.add_(noise, alpha=0.5 * parameter.shape[-1] ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith(("selection_bias_E", "e_score_correction_bias")):
            buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))


def their_model(model_type: str, **config) -> torch.nn.Module:
    """A random model of transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    shake(model)
    return model.eval()


def their_case(case: str) -> tuple[str, torch.nn.Module]:
    """A model_type, and the random model of a case of THEIRS."""
    model_type, fields = THEIRS[case]
    return model_type, their_model(model_type, **(fields if model_type.startswith("mamba") else SIZES | fields))


def load_theirs(folder: Path) -> torch.nn.Module:
    """In transformers; every tensor must be used, and none missing."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    return model.eval()


def weights_of(run: Path, step: int) -> dict[str, Tensor]:
    """The model's tensors of a run's checkpoint."""
    return {name: tensor for name, tensor in state(run, step).items() if name.startswith("model.")}


def files_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_bit_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_same_logits(run: Path, model: torch.nn.Module, within: float = 1e-5) -> None:
    """On random tokens, relative to the largest logit, which is not small."""
    tokens_BS = torch.randint(VOCAB, (2, 19), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        mine = load_run(run).model(tokens_BS, Context())
        theirs = model(tokens_BS, use_cache=False).logits
    scale = mine.abs().max()
    assert scale > 0.3 and (mine - mine.mean(-1, keepdim=True)).std() > 0.05
    assert (mine - theirs).abs().max() <= within * scale, float((mine - theirs).abs().max() / scale)


def write(run: Path, out: Path, **options) -> dict:
    return to_hf(find_source(run), out, Options(**options))


def read(folder: Path, run: Path, *overrides: str) -> dict:
    return from_hf(folder, run, overrides)


def reshard_on_rank(run: Path, layout: tuple[str, ...]) -> None:
    """Load a run's newest checkpoint on a layout, as a resume does, and save it from there as step 1."""
    from framework.training.checkpoint import Checkpointer, model_tensors, optimizer_tensors
    from framework.training.peers import Peers
    from framework.training.preconditions import mesh_sizes
    from framework.training.setup import build_model, build_optimizer
    from parallel import Mesh

    loaded = load_recipe(str(run / "recipe.yaml"), layout)
    model = build_model(loaded, Mesh(mesh_sizes(loaded.recipe.parallel), "cpu"), torch.device("cpu"))
    tensors = model_tensors(model) | optimizer_tensors(model, build_optimizer(loaded, model))
    with Checkpointer(run / "checkpoints", Peers()) as checkpointer:
        assert checkpointer.load_newest(tensors).step == 0
        checkpointer.save(1, tensors, {}, background=False)
