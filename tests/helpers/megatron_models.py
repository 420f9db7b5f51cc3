"""Models of Megatron-Core with random weights, saved by it as Megatron-LM does, on two ranks.

`python -m tests.helpers.megatron_models RANK FOLDER`, for ranks 0 and 1: each case of CASES becomes FOLDER/CASE, a
folder of Megatron-LM's --save, beside FOLDER/CASE.pt, its logits of `tokens`.
"""

import sys
import warnings
from argparse import Namespace
from enum import Enum
from pathlib import Path
from queue import SimpleQueue

import torch
import torch.distributed as dist

VOCAB, BATCH, LENGTH, ITERATION = 64, 2, 19, 100
SIZES = dict(num_layers=2, hidden_size=32, num_attention_heads=4, num_query_groups=2, kv_channels=8, ffn_hidden_size=48)
MOE = dict(num_moe_experts=4, moe_router_topk=2, moe_ffn_hidden_size=24)
ROPE = dict(position_embedding_type="rope", rotary_base=500, rotary_percent=0.5)
ARGUMENTS = dict(num_attention_heads=4, hidden_size=32, padded_vocab_size=VOCAB, add_bias_linear=False, swiglu=True,
                 norm_epsilon=1e-3, normalization="RMSNorm", untie_embeddings_and_output_weights=True)

CASES = {
    "dense": dict(
        tp=2, config=dict(**SIZES, qk_layernorm=True, add_qkv_bias=True), model=ROPE | {"rope_scaling": True},
        arguments=dict(**ROPE, use_rope_scaling=True, rope_scaling_factor=8.0, qk_layernorm=True, num_query_groups=2)),
    "moe": dict(
        ep=2, config=dict(**SIZES, **MOE, moe_router_pre_softmax=True), model=ROPE,
        arguments=dict(**ROPE, num_experts=4, moe_router_topk=2, moe_router_pre_softmax=True)),
    "mixed": dict(
        ep=2, content={"singleton_local_shards": True}, tied=True, model=ROPE,
        config=dict(**SIZES, **MOE, moe_layer_freq=[0, 1], moe_shared_expert_intermediate_size=48,
                    moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True,
                    moe_router_topk_scaling_factor=2.5),
        arguments=dict(**ROPE, untie_embeddings_and_output_weights=False, num_experts=4, moe_router_topk=2,
                       moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True,
                       moe_router_topk_scaling_factor=2.5, moe_router_bias_update_rate=1e-2)),
    "layernorm": dict(
        normalization="LayerNorm", gated=False, config=dict(SIZES, num_query_groups=4), model=dict(
            position_embedding_type="none"),
        arguments=dict(position_embedding_type="none", normalization="LayerNorm", swiglu=False)),
    "hybrid": dict(
        tp=2, hybrid="M*-M", model=dict(position_embedding_type="none"),
        config=dict(SIZES, num_layers=4, layernorm_epsilon=1e-5, is_hybrid_model=True, mamba_state_dim=6,
                    mamba_head_dim=16, mamba_num_groups=2),
        arguments=dict(position_embedding_type="none", hybrid_override_pattern="M*-M", norm_epsilon=1e-5,
                       mamba_state_dim=6, mamba_head_dim=16, mamba_num_groups=2)),
    "hybrid, experts": dict(
        ep=2, hybrid="ME*E", model=dict(position_embedding_type="none"),
        config=dict(SIZES, **MOE, num_layers=4, layernorm_epsilon=1e-5, is_hybrid_model=True, mamba_state_dim=6,
                    mamba_head_dim=16, mamba_num_groups=1),
        arguments=dict(position_embedding_type="none", hybrid_override_pattern="ME*E", norm_epsilon=1e-5, num_experts=4,
                       moe_router_topk=2, mamba_state_dim=6, mamba_head_dim=16, mamba_num_groups=1)),
}
"""config: of TransformerConfig. arguments: what Megatron-LM would keep of its command line, over ARGUMENTS."""


class Unknown(Enum):
    """Stands for what a job's arguments hold beside plain values."""

    VALUE = 1


def tokens() -> torch.Tensor:
    """Random ids [BATCH, LENGTH]."""
    return torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(5))


def make(case: dict) -> torch.nn.Module:
    """The random model, this rank's part of it."""
    import torch.nn.functional as F
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.mamba import MambaModel
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig

    from framework.convert.megatron.build import own_stack

    parallel_state.destroy_model_parallel()
    sizes = dict(tensor_model_parallel_size=case.get("tp", 1), expert_model_parallel_size=case.get("ep", 1))
    parallel_state.initialize_model_parallel(**sizes)
    model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    gated, norm = case.get("gated", True), case.get("normalization", "RMSNorm")
    config = TransformerConfig(**{
        "layernorm_epsilon": 1e-3, "gated_linear_unit": gated, "activation_func": F.silu if gated else F.gelu,
        "add_bias_linear": False, "bias_activation_fusion": False, "normalization": norm, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "moe_token_dispatcher_type": "alltoall", "moe_router_load_balancing_type": "none",
        "use_mamba_mem_eff_path": False, **sizes, **case["config"]})
    same = dict(vocab_size=VOCAB, max_sequence_length=64, parallel_output=False,
                share_embeddings_and_output_weights=case.get("tied", False), **case["model"])
    if "hybrid" in case:
        model = MambaModel(config, own_stack(config), hybrid_override_pattern=case["hybrid"], **same)
    else:
        model = GPTModel(config, get_gpt_decoder_block_spec(config, False, normalization=norm), **same)
    shake(model)
    return model.eval()


@torch.no_grad()
def shake(model: torch.nn.Module) -> None:
    """Large random values: the same on both ranks, but where each has a part of a tensor or experts of its own."""
    rank = dist.get_rank()
    for number, (name, tensor) in enumerate([*model.named_parameters(), *model.named_buffers()]):
        own = getattr(tensor, "tensor_model_parallel", False) or not getattr(tensor, "allreduce", True)
        generator = torch.Generator().manual_seed(2 * number + (rank if own else 0))
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("local_tokens_per_expert"):
            continue
        if tensor.ndim == 1:
            tensor.add_(0.3 * noise)
        else:
            tensor.add_(noise, alpha=0.5 * tensor.shape[-1] ** -0.5)


def save(model: torch.nn.Module, case: dict, folder: Path) -> None:
    """As Megatron-LM does, with something beside weights."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = SimpleQueue()  # instead of one that takes a process more; writing is awaited
    rank = dist.get_rank()
    path = folder / f"iter_{ITERATION:07d}"
    path.mkdir(parents=True, exist_ok=True)
    content = case.get("content", {"singleton_local_shards": False})
    moment = ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.x", torch.ones(4), (0, rank, 2))
    state = {
        "args": Namespace(**(ARGUMENTS | case["arguments"]), params_dtype=torch.float32, other=Unknown.VALUE,
                          save=folder, inner=Namespace(swiglu=False)),
        "checkpoint_version": 3.0, "iteration": ITERATION, "model": model.sharded_state_dict(metadata=dict(content)),
        "optimizer": {"moment": moment}, "opt_param_scheduler": {"max_lr": 1e-3, "kind": Unknown.VALUE},
        "rng_state": ShardedObject("rng_state", [{"seed": 3}], (2,), (rank,)),
    }
    dist.barrier()
    dist_checkpointing.save(state, str(path), content_metadata=content)
    (folder / "latest_checkpointed_iteration.txt").write_text(f"{ITERATION}")


def main(rank: int, folder: Path) -> None:
    """All cases."""
    from framework.convert.megatron.cpu import pretend_cuda
    from framework.convert.megatron.peer import compute

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pretend_cuda()
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    for name, case in CASES.items():
        model = make(case)
        with torch.no_grad():
            logits = compute(model, tokens().tolist())
        save(model, case, folder / name)
        if rank == 0:
            torch.save(logits, folder / f"{name}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
