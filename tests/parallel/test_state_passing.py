"""Scans and convolutions of a sequence in parts equal those of the whole sequence on one device.

B batch, S sequence, H heads, G groups, P head width, I channels, N state, K taps.
"""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from kernels import causal_convolution, selective_scan, ssd
from parallel import Mesh, MeshSizes
from parallel.context import convolve_parts, own_part, scan_parts, ssd_parts, state_passing
from parallel.pool import RankError

BATCH, SEQ_LEN, NUM_RANKS = 2, 24, 4
STARTS = {
    "one_document": None,
    "at_borders": [[6], [12, 18]],
    "inside": [[2, 9, 23], [1]],
    "everywhere": [[5, 6, 7, 12, 13, 17, 18], [3, 6, 12, 15, 21]],
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ssd_inputs(num_groups: int, seq_len: int = SEQ_LEN, num_heads: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    """What is split by tokens (x, dt, B, C) and what is not (A, D)."""
    tokens = (BATCH, seq_len)
    dt_BSH = random(*tokens, num_heads, seed=1).exp() * 0.1
    B_BSGN, C_BSGN = (random(*tokens, num_groups, 5, seed=seed) for seed in (2, 3))
    return [random(*tokens, num_heads, 3, seed=0), dt_BSH, B_BSGN, C_BSGN], [
        -random(num_heads, seed=4).exp(), random(num_heads, seed=5)]


def selective_inputs(seq_len: int = SEQ_LEN, num_channels: int = 6) -> tuple[list[Tensor], list[Tensor]]:
    tokens = (BATCH, seq_len)
    dt_BSI = random(*tokens, num_channels, seed=1).exp() * 0.1
    B_BSN, C_BSN = (random(*tokens, 4, seed=seed) for seed in (2, 3))
    return [random(*tokens, num_channels, seed=0), dt_BSI, B_BSN, C_BSN], [
        -random(num_channels, 4, seed=4).exp(), random(num_channels, seed=5)]


def documents(starts: list[list[int]] | None) -> Tensor | None:
    if starts is None:
        return None
    document_BS = torch.zeros(BATCH, SEQ_LEN, dtype=torch.int64)
    for row, places in zip(document_BS, starts, strict=True):
        row[places] = 1
    return document_BS.cumsum(1)


def gradients(scan, split: list[Tensor], whole: list[Tensor], document_BS: Tensor | None, dy: Tensor) -> list[Tensor]:
    """Output, state after it, and gradients of all inputs. chunk_size 4: parts of 6 tokens end inside a chunk."""
    split, whole = ([x.clone().requires_grad_() for x in tensors] for tensors in (split, whole))
    (x, dt, B, C), (A, D) = split, whole
    y, state = scan(x, dt, A, B, C, D, 4, document_BS)
    return [y.detach(), state.detach(), *torch.autograd.grad(y, split + whole, dy)]


def on_ranks(kind: str, split: list[Tensor], whole: list[Tensor], document_BS: Tensor | None, dy: Tensor):
    cp = Mesh(MeshSizes(cp=dist.get_world_size()), "cpu").cp
    scan = partial({"ssd": ssd_parts, "selective": scan_parts}[kind], cp=cp)
    return gradients(scan, [own_part(x, cp) for x in split], whole, document_BS, own_part(dy, cp))


def check(got: list[list[Tensor]], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    """The last rank's state, parts side by side, and gradients of what all ranks hold summed, as everywhere."""
    y, *parts, A, D = zip(*got, strict=True)
    states, *parts = parts
    whole = [torch.cat(y, 1), states[-1], *(torch.cat(part, 1) for part in parts), sum(A), sum(D)]
    for name, mine, reference in zip("y state x dt B C A D".split(), whole, expected, strict=True):
        difference, scale = (mine - reference).abs().max(), reference.abs().max()
        assert difference <= tolerance * scale, f"{name}: {difference:.2e} of {scale:.2e}"


@pytest.mark.parametrize("num_ranks", [2, NUM_RANKS])
@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("num_groups", [1, 2])
def test_mamba2(ranks, num_ranks, starts, num_groups):
    inputs, document_BS = ssd_inputs(num_groups), documents(STARTS[starts])
    dy = random(BATCH, SEQ_LEN, 4, 3, seed=6)
    got = ranks.run(num_ranks, on_ranks, "ssd", *inputs, document_BS, dy)
    check(got, gradients(ssd, *inputs, document_BS, dy))


@pytest.mark.parametrize("num_ranks", [2, NUM_RANKS])
@pytest.mark.parametrize("starts", STARTS)
def test_mamba1(ranks, num_ranks, starts):
    inputs, document_BS = selective_inputs(), documents(STARTS[starts])
    dy = random(BATCH, SEQ_LEN, 6, seed=6)
    got = ranks.run(num_ranks, on_ranks, "selective", *inputs, document_BS, dy)
    check(got, gradients(selective_scan, *inputs, document_BS, dy))


@pytest.mark.parametrize("kind", ["ssd", "selective"])
def test_decays_that_underflow_leave_no_nan(ranks, kind):
    split, whole = ssd_inputs(1) if kind == "ssd" else selective_inputs()
    split, whole = [x.float() for x in split], [x.float() for x in whole]
    split[1] = split[1] * 1e4
    dy = random(*split[0].shape, seed=6).float()
    got = ranks.run(2, on_ranks, kind, split, whole, None, dy)
    check(got, gradients({"ssd": ssd, "selective": selective_scan}[kind], split, whole, None, dy), 1e-5)


@pytest.mark.parametrize("kind", ["ssd", "selective"])
def test_bfloat16_rounds_once_more_than_one_device(ranks, kind):
    split, whole = ssd_inputs(2) if kind == "ssd" else selective_inputs()
    low = [split[0].bfloat16(), split[1].float(), split[2].bfloat16(), split[3].bfloat16()]
    dy = random(*low[0].shape, seed=6).bfloat16()
    got = ranks.run(2, on_ranks, kind, low, [x.float() for x in whole], None, dy)
    assert got[0][0].dtype == torch.bfloat16 and got[0][1].dtype == torch.float32
    y = torch.cat([rank[0] for rank in got], 1).double()
    reference, _ = {"ssd": ssd, "selective": selective_scan}[kind](
        *(x.double() for x in (low[0], low[1], whole[0], low[2], low[3], whole[1])))
    assert (y - reference).abs().max() <= 2**-7 * reference.abs().max()


def without(what: str, *args) -> list[Tensor]:
    """`on_ranks` with a fault: nothing handed over, or states that cross the borders of documents."""
    passed, kept = state_passing.pass_states, state_passing._keep_within_document
    if what == "hand-over":
        state_passing.pass_states = lambda leaving, kept, *_: (torch.zeros_like(leaving), leaving)
    else:
        state_passing._keep_within_document = lambda x, *_: x
    try:
        return on_ranks(*args)
    finally:
        state_passing.pass_states, state_passing._keep_within_document = passed, kept


@pytest.mark.parametrize("kind", ["ssd", "selective"])
@pytest.mark.parametrize("what", ["hand-over", "documents"])
def test_the_comparison_notices_a_fault(ranks, kind, what):
    inputs, document_BS = ssd_inputs(1) if kind == "ssd" else selective_inputs(), documents(STARTS["at_borders"])
    dy = random(*inputs[0][0].shape, seed=6)
    expected = gradients({"ssd": ssd, "selective": selective_scan}[kind], *inputs, document_BS, dy)
    check(ranks.run(NUM_RANKS, on_ranks, kind, *inputs, document_BS, dy), expected)
    with pytest.raises(AssertionError, match="y: "):
        check(ranks.run(NUM_RANKS, without, what, kind, *inputs, document_BS, dy), expected)


def convolution_gradients(convolve, x_BSC: Tensor, whole: list[Tensor], document_BS: Tensor | None, dy: Tensor):
    x_BSC, (weight_CK, bias_C) = x_BSC.clone().requires_grad_(), (w.clone().requires_grad_() for w in whole)
    y_BSC, tail_BKC = convolve(x_BSC, weight_CK, bias_C, document_BS)
    return [y_BSC.detach(), tail_BKC.detach(), *torch.autograd.grad(y_BSC, (x_BSC, weight_CK, bias_C), dy)]


def convolution_on_ranks(x_BSC: Tensor, whole: list[Tensor], document_BS: Tensor | None, dy: Tensor):
    cp = Mesh(MeshSizes(cp=dist.get_world_size()), "cpu").cp
    return convolution_gradients(
        partial(convolve_parts, cp=cp), own_part(x_BSC, cp), whole, document_BS, own_part(dy, cp))


@pytest.mark.parametrize("num_taps", [1, 2, 4, 7])
@pytest.mark.parametrize("starts", STARTS)
def test_convolution(ranks, num_taps, starts):
    """Parts of 6 tokens: 7 taps reach back to the first token of the part before."""
    document_BS, whole = documents(STARTS[starts]), [random(3, num_taps, seed=1), random(3, seed=2)]
    x_BSC, dy = random(BATCH, SEQ_LEN, 3, seed=0), random(BATCH, SEQ_LEN, 3, seed=3)
    y, tails, x, weight, bias = zip(
        *ranks.run(NUM_RANKS, convolution_on_ranks, x_BSC, whole, document_BS, dy), strict=True)
    got = [torch.cat(y, 1), tails[-1], torch.cat(x, 1), sum(weight), sum(bias)]
    for mine, reference in zip(got, convolution_gradients(causal_convolution, x_BSC, whole, document_BS, dy),
                               strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-13)


def test_a_part_shorter_than_what_the_convolution_reaches_back_is_refused(ranks):
    x_BSC, whole = random(BATCH, 8, 3, seed=0), [random(3, 4, seed=1), random(3, seed=2)]
    with pytest.raises(RankError, match="2 tokens on each of cp=4 ranks, but the convolution reaches back 3"):
        ranks.run(NUM_RANKS, convolution_on_ranks, x_BSC, whole, None, x_BSC)
