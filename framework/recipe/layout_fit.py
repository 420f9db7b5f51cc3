"""Which sizes of a model a layout cannot split; pure arithmetic, so that a command can refuse before a rank starts."""

from __future__ import annotations

from framework.recipe.architecture import Architecture, Sublayer
from framework.recipe.schema import Data, Parallel
from framework.recipe.stages import num_stages, stages_misfit

SPLIT_BY_TENSOR = {
    "attention": "query heads", "ffn": "feed-forward channels", "moe": "channels of shared experts",
    "mamba1": "Mamba-1 channels", "mamba2": "Mamba-2 heads",
}
"""What tensor parallelism splits of each kind of sublayer, in equal parts."""


def tensor_misfits(architecture: Architecture, tp: int) -> list[str]:
    """One line for each size of the model that `tp` ranks cannot split. Key-value heads and groups may be fewer.

    The vocabulary is cut in parts of ceil(V / tp) rows, the last one shorter.
    """
    model = architecture.model
    sizes = {(sublayer.kind, _tensor_size(sublayer, model.d_model)): None for sublayer in architecture.sublayers()}
    lines = [line for kind, size in sizes if (line := indivisible("tp", tp, size, SPLIT_BY_TENSOR[kind]))]
    rows = -(-model.vocab_size // tp)
    if rows * (tp - 1) >= model.vocab_size:
        lines.append(f"tp={tp}: the {model.vocab_size} vocabulary rows fill fewer parts of {rows}")
    return lines


def sequence_misfits(seq_len: int, cp: int, tp: int) -> list[str]:
    """One line where cp * tp ranks cannot hold equal parts of a sequence of `seq_len` tokens."""
    if seq_len % (cp * tp):
        return [f"cp*tp={cp}*{tp} must divide the {seq_len} tokens of a sequence"]
    return []


def context_misfits(architecture: Architecture, cp: int, tp: int, seq_len: int) -> list[str]:
    """One line for each reason why sequences of `seq_len` tokens cannot be in `cp` parts, of `tp` parts each.

    Any number of heads can: where they do not divide, attention goes round the ring.
    """
    if cp == 1 or seq_len % (cp * tp):
        return sequence_misfits(seq_len, cp, tp)
    part = seq_len // cp
    taps = {sub.settings.d_conv for sub in architecture.sublayers() if sub.kind in ("mamba1", "mamba2")}
    return [
        f"cp={cp} leaves {part} of {seq_len} tokens a rank, fewer than the {count - 1} that a convolution looks back"
        for count in sorted(taps) if part < count - 1
    ]


def pipeline_misfits(architecture: Architecture, data: Data, parallel: Parallel) -> list[str]:
    """One line for each reason why a pipeline cannot be cut so, or cannot run on a step's micro-batches.

    Batches must divide over the data-parallel ranks and into micro-batches.
    """
    if parallel.pp == 1:
        return []
    found = [_stages_per_rank_misfit(parallel), stages_misfit(architecture, num_stages(parallel))]
    for batch_size in dict.fromkeys([data.batch_size, *data.batch_ramp.values()]):
        found.append(_micro_batches_misfit(batch_size, data.micro_batch_size, parallel))
    return [line for line in found if line]


def _stages_per_rank_misfit(parallel: Parallel) -> str | None:
    given = parallel.pp_stages_per_rank
    if parallel.pp_schedule == "1f1b" and given not in (None, 1):
        return f"the schedule 1f1b has 1 stage a rank, not pp_stages_per_rank={given}"
    if parallel.pp_schedule == "interleaved" and given == 1:
        return "the schedule interleaved needs at least 2 stages a rank, not pp_stages_per_rank=1"
    return None


def _micro_batches_misfit(batch_size: int, micro_batch_size: int | None, parallel: Parallel) -> str | None:
    """1F1B needs a micro-batch a rank. The others go in rounds of at least as many, all of one length."""
    ranks, pp, schedule = parallel.dp_replicate * parallel.dp_shard, parallel.pp, parallel.pp_schedule
    share = batch_size // ranks
    count = share // (micro_batch_size or share)
    given = f"{batch_size} sequences / {ranks} data-parallel ranks / micro_batch_size {micro_batch_size or share}"
    if count < pp:
        return f"{given} = {count} micro-batches, but pp={pp} needs at least {pp}"
    rounds = count // pp
    if schedule != "1f1b" and count % rounds:
        return f"{given} = {count} micro-batches, which do not divide into {count}//{pp} = {rounds} rounds ({schedule})"
    return None


def indivisible(axis: str, degree: int, size: int, what: str) -> str | None:
    """What is wrong where `degree` ranks do not divide `size`; None where they do."""
    return f"{axis}={degree} must divide the {size} {what}" if size % degree else None


def _tensor_size(sublayer: Sublayer, d_model: int) -> int:
    settings = sublayer.settings
    if sublayer.kind == "attention":
        return settings.num_heads
    if sublayer.kind == "ffn":
        return settings.d_ff
    if sublayer.kind == "moe":
        return settings.num_shared_experts * settings.d_expert
    d_inner = round(settings.expand * d_model)
    return d_inner if sublayer.kind == "mamba1" else d_inner // settings.head_dim
