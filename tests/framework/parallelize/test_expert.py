"""A mixture-of-experts block over ranks that split batches, sequences and experts in any way equals one rank's.

B batch, S sequence, D model width, E experts.
"""

import pytest
import torch
from torch import nn

from framework.model.moe import TokenParts
from framework.parallelize.expert import apply_expert_parallelism, make_dispatcher
from parallel import Mesh, MeshSizes, SymmetricMemory
from parallel.collectives import all_sum
from tests.helpers.mixtures import BATCH_SIZE, D_MODEL, NUM_EXPERTS, OPTIONS, SEQ_LEN, TOP_K, batch, block, run
from tests.helpers.shared_memory import SharedMemory

LAYOUTS = {
    "cp2": MeshSizes(cp=2),
    "tp2xep2": MeshSizes(tp=2, ep=2),
    "cp2xep2": MeshSizes(cp=2, ep=2),
    "dp_shard2xtp2xep4": MeshSizes(dp_shard=2, tp=2, ep=4),
    "dp_shard2xtp2xep2": MeshSizes(dp_shard=2, tp=2, ep=2),
    "cp2xtp2xep4": MeshSizes(cp=2, tp=2, ep=4),
    "dp_replicate2xcp2xep2": MeshSizes(dp_replicate=2, cp=2, ep=2),
    "dp_shard2xcp2xtp2xep8": MeshSizes(dp_shard=2, cp=2, tp=2, ep=8),
    "pp2xdp_shard2xtp2xep4": MeshSizes(pp=2, dp_shard=2, tp=2, ep=4),
}


def own(x_BSD, mesh):
    """This rank's part of the sequences' tokens."""
    x_BSD = x_BSD.chunk(mesh.batch.size())[mesh.batch.get_local_rank()]
    return x_BSD.chunk(mesh.sequence.size(), 1)[mesh.sequence.get_local_rank()]


def on_layout(sizes, options, deduplicate, skip=None):
    """Where this rank's tokens stand among all; for each option what `run` gives, statistics and gradients whole.

    skip: of what ranks tell each other, the part to leave out.
    """
    mesh = Mesh(sizes, "cpu")
    token_T = own(torch.arange(BATCH_SIZE * SEQ_LEN).view(BATCH_SIZE, SEQ_LEN, 1), mesh).flatten()
    return token_T, {option: on_mesh(mesh, option, deduplicate, skip) for option in options}


def on_mesh(mesh, option, deduplicate, skip):
    moe = block(option)
    apply_expert_parallelism(nn.ModuleList([moe]), mesh, deduplicate)
    if skip is not None:
        names = {"sequence", "batch", "forward"} - {skip}
        moe.token_parts = TokenParts(**{name: getattr(moe.token_parts, name) for name in names})
    return run_whole(mesh, moe)


def through_memory(sizes, options, deduplicate):
    """What `on_layout` gives, in float32 through memory that processes share, all blocks through the same."""
    mesh = Mesh(sizes, "cpu")
    memory = SymmetricMemory(mesh.ep, SharedMemory())
    token_T = own(torch.arange(BATCH_SIZE * SEQ_LEN).view(BATCH_SIZE, SEQ_LEN, 1), mesh).flatten()
    results = {}
    for option in options:
        moe = block(option).float()
        apply_expert_parallelism(nn.ModuleList([moe]), mesh)
        moe.dispatcher = make_dispatcher(moe, mesh, deduplicate, memory)
        results[option] = run_whole(mesh, moe)
    return token_T, results


def run_whole(mesh, moe):
    """What `run` gives on this rank's tokens, statistics and gradients of all ranks."""
    dtype = moe.router.weight.dtype
    y_BSD, dx_BSD, statistics, gradients = run(moe, *(own(x_BSD, mesh).to(dtype) for x_BSD in batch()))

    def whole(name, gradient):
        if name.startswith("experts."):
            mine = gradient.to_local()
            gradient = mine.new_zeros(NUM_EXPERTS, *mine.shape[1:])
            gradient.chunk(mesh.ep.size())[mesh.ep.get_local_rank()].copy_(mine)
        return all_sum(gradient, mesh.stage.get_group())

    statistics = {name: all_sum(value, mesh.stage.get_group()) for name, value in statistics.items()}
    return y_BSD, dx_BSD, statistics, {name: whole(name, gradient) for name, gradient in gradients.items()}


def largest_differences(ranks, sizes, options, deduplicate, *skip, function=on_layout):
    """By option, relative to the largest entry: over the output, statistics and gradients, experts one by one."""
    results = ranks.run(sizes.world, function, sizes, options, deduplicate, *skip)
    return {option: max(difference(token_T, got[option], run(block(option), *batch())) for token_T, got in results)
            for option in options}


def difference(token_T, got, expected):
    y_BSD, dx_BSD, statistics, gradients = got
    pairs = [(y_BSD, expected[0].flatten(0, 1)[token_T]), (dx_BSD, expected[1].flatten(0, 1)[token_T])]
    pairs += [(statistics[name], reference) for name, reference in expected[2].items() if name != "dispatch_bytes"]
    for name, reference in expected[3].items():
        stacked = name.startswith("experts.")
        pairs += zip(gradients[name], reference, strict=True) if stacked else [(gradients[name], reference)]
    return max(((mine.reshape(reference.shape) - reference).abs().max() / (reference.abs().max() + 1e-30)).item()
               for mine, reference in pairs)


@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_one_rank(ranks, layout, deduplicate):
    options = ["capacity", "expert_choice"] if LAYOUTS[layout].world == 8 else list(OPTIONS)
    differences = largest_differences(ranks, LAYOUTS[layout], options, deduplicate)
    assert max(differences.values()) < 1e-11, differences


@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
def test_dispatch_through_shared_memory_equals_one_rank(ranks, deduplicate):
    options = ["dropless", "capacity", "expert_choice"]
    differences = largest_differences(
        ranks, LAYOUTS["dp_shard2xtp2xep4"], options, deduplicate, function=through_memory)
    assert max(differences.values()) < 1e-5, differences


def refused_on_the_cpu():
    model, mesh = nn.ModuleList([block("dropless")]), Mesh(MeshSizes(), "cpu")
    with pytest.raises(ValueError, match="dispatch=symmetric_memory needs GPUs, not cpu; allowed: auto, all_to_all"):
        apply_expert_parallelism(model, mesh, dispatch="symmetric_memory")


def test_symmetric_memory_is_refused_on_the_cpu(ranks):
    ranks.run(1, refused_on_the_cpu)


@pytest.mark.parametrize("option, skip, layout", [
    ("dropless", "sequence", "cp2"), ("capacity", "sequence", "tp2xep2"), ("expert_choice", "sequence", "cp2xep2"),
    ("expert_choice_by_position", "batch", "dp_shard2xtp2xep4"), ("over_forward", "forward", "dp_shard2xtp2xep2"),
])
def test_a_part_that_is_left_out_is_found_out(ranks, option, skip, layout):
    """Wrong on purpose: the comparison above must see it."""
    assert largest_differences(ranks, LAYOUTS[layout], [option], False, skip)[option] > 1e-6


def bytes_sent(sizes, deduplicate):
    mesh, moe = Mesh(sizes, "cpu"), block("dropless")
    apply_expert_parallelism(nn.ModuleList([moe]), mesh, deduplicate)
    x_BSD, dy_BSD = (own(x_BSD, mesh) for x_BSD in batch())
    _, _, statistics, _ = run(moe, x_BSD, dy_BSD)
    with torch.no_grad():
        index_TK = moe.router(x_BSD).topk(TOP_K).indices.flatten(0, 1)
    owner_TK = index_TK // (NUM_EXPERTS // mesh.ep.size())
    return statistics["dispatch_bytes"].item(), owner_TK


@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
def test_bytes_that_leave_ranks_are_counted(ranks, deduplicate):
    results = ranks.run(4, bytes_sent, LAYOUTS["dp_shard2xtp2xep4"], deduplicate)
    rows = 0
    for rank, (_, owner_TK) in enumerate(results):
        for owners in owner_TK.tolist():
            remote = [owner for owner in owners if owner != rank]
            rows += len(set(remote)) if deduplicate else len(remote)
    assert sum(num_bytes for num_bytes, _ in results) == 2 * rows * D_MODEL * 8


def test_on_one_rank_nothing_is_sent():
    moe = block("dropless")
    assert run(moe, *batch())[2]["dispatch_bytes"] == 0


def refused(sizes):
    with pytest.raises(ValueError, match="ep=3 must divide the 8 experts"):
        apply_expert_parallelism(nn.ModuleList([block("dropless")]), Mesh(sizes, "cpu"))


def test_experts_that_do_not_divide_are_refused(ranks):
    ranks.run(3, refused, MeshSizes(dp_shard=3, ep=3))
