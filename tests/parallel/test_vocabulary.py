"""Embedding and cross entropy of a split vocabulary against the whole one, on every rank.

B batch, S sequence, T tokens, D model width, V vocabulary.
"""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from kernels import linear_cross_entropy
from kernels.cross_entropy import CHUNK_LOGITS
from parallel.vocabulary import VocabularyShard

T, D = 14, 6
Z_LOSS_WEIGHT = 0.01


def inputs(vocab_size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x_TD, weight_VD and targets_T, some of them left out, with the first and the last of the vocabulary."""
    generator = torch.Generator().manual_seed(vocab_size)
    x_TD, weight_VD = (torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype)
                       for rows in (T, vocab_size))
    targets_T = torch.randint(0, vocab_size, (T,), generator=generator)
    targets_T[:4] = torch.tensor([0, vocab_size - 1, -100, -100])
    return x_TD, weight_VD, targets_T


def own_rows(weight_VD: Tensor) -> Tensor:
    return weight_VD.chunk(dist.get_world_size())[dist.get_rank()].clone().requires_grad_()


def split_loss(
    vocab_size: int, dtype: torch.dtype, scale: float, chunk_logits: int, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """On this rank: the loss, its part of the gradient of x, and the gradient of its rows."""
    x_TD, weight_VD, targets_T = inputs(vocab_size, dtype)
    x_TD.requires_grad_()
    weight = own_rows(weight_VD)
    with patch.dict(CHUNK_LOGITS, cpu=chunk_logits):
        loss = VocabularyShard(vocab_size, dist.group.WORLD).cross_entropy(
            x_TD, weight, targets_T, scale, Z_LOSS_WEIGHT, backend)
    (loss * 0.5).backward()
    return loss.detach(), x_TD.grad, weight.grad


def whole_loss(vocab_size: int, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    x_TD, weight_VD, targets_T = inputs(vocab_size, dtype)
    x_TD.requires_grad_(), weight_VD.requires_grad_()
    loss = linear_cross_entropy(x_TD, weight_VD, targets_T, scale, Z_LOSS_WEIGHT)
    (loss * 0.5).backward()
    return loss.detach(), x_TD.grad, weight_VD.grad


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("vocab_size", [16, 15, 17])
@pytest.mark.parametrize("chunk_logits", [12, 2**21])
def test_cross_entropy_is_that_of_the_whole_vocabulary(ranks, num_ranks, vocab_size, chunk_logits):
    """In chunks of few tokens, whose number must be the same on a rank with fewer rows, and in one."""
    expected, dx_TD, dweight_VD = whole_loss(vocab_size, torch.float64, 0.7)
    results = ranks.run(num_ranks, split_loss, vocab_size, torch.float64, 0.7, chunk_logits)
    for loss, _, _ in results:
        assert torch.equal(loss, results[0][0])
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(sum(dx for _, dx, _ in results), dx_TD, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat([dw for _, _, dw in results]), dweight_VD, rtol=1e-12, atol=1e-14)


def test_triton_takes_the_same_steps(ranks):
    """Its kernels on each rank's rows, the last of which has fewer, in two chunks."""
    expected, dx_TD, dweight_VD = whole_loss(17, torch.float32, 0.7)
    results = ranks.run(2, split_loss, 17, torch.float32, 0.7, 9 * 8, "triton")
    for loss, _, _ in results:
        assert torch.equal(loss, results[0][0])
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(dx for _, dx, _ in results), dx_TD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([dw for _, _, dw in results]), dweight_VD, rtol=1e-5, atol=1e-6)


def test_bfloat16_takes_its_softmax_in_float32(ranks):
    expected, _, dweight_VD = whole_loss(16, torch.bfloat16, 1.0)
    results = ranks.run(2, split_loss, 16, torch.bfloat16, 1.0, 2**21)
    for loss, dx, dweight in results:
        assert (loss.dtype, dx.dtype, dweight.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
        # The products are the same; only sums of float32 are taken in another order.
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.cat([dw for _, _, dw in results]), dweight_VD, rtol=2**-8, atol=1e-3)


def largest_logits(vocab_size: int) -> float:
    """Logits near 1e4 on the last rank alone, far beyond what exp can take."""
    x_TD, weight_VD, targets_T = inputs(vocab_size, torch.float32)
    weight_VD[-1] *= 1e4
    loss = VocabularyShard(vocab_size, dist.group.WORLD).cross_entropy(x_TD, own_rows(weight_VD), targets_T)
    expected = linear_cross_entropy(x_TD, weight_VD, targets_T)
    return (loss / expected - 1).abs().item()


def test_large_logits_do_not_overflow(ranks):
    assert max(ranks.run(2, largest_logits, 16)) < 1e-6


def look_up(vocab_size: int) -> tuple[Tensor, Tensor]:
    """This rank's part of the embedded sequence, and the gradient of its rows."""
    _, weight_VD, _ = inputs(vocab_size)
    weight = own_rows(weight_VD)
    x_BSD = VocabularyShard(vocab_size, dist.group.WORLD).look_up(tokens(vocab_size), weight)
    (x_BSD * factors().chunk(dist.get_world_size(), 1)[dist.get_rank()]).sum().backward()
    return x_BSD.detach(), weight.grad


def tokens(vocab_size: int) -> Tensor:
    return torch.randint(0, vocab_size, (3, 8), generator=torch.Generator().manual_seed(2))


def factors() -> Tensor:
    return torch.randn(3, 8, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(("num_ranks", "vocab_size"), [(2, 15), (4, 16), (4, 17)])
def test_look_up_gives_each_rank_its_part_of_the_sequence(ranks, num_ranks, vocab_size):
    weight_VD = inputs(vocab_size)[1].requires_grad_()
    expected = F.embedding(tokens(vocab_size), weight_VD)
    (expected * factors()).sum().backward()
    results = ranks.run(num_ranks, look_up, vocab_size)
    torch.testing.assert_close(torch.cat([x for x, _ in results], 1), expected.detach(), rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), weight_VD.grad, rtol=1e-14, atol=1e-14)


def gathered_logits(vocab_size: int) -> tuple[Tensor, Tensor]:
    """All logits, and the gradient of this rank's rows where each rank's loss is its share of the whole."""
    x_TD, weight_VD, targets_T = inputs(vocab_size)
    weight = own_rows(weight_VD)
    logits_1TV = VocabularyShard(vocab_size, dist.group.WORLD).gather_logits(F.linear(x_TD, weight)[None])
    (F.cross_entropy(logits_1TV[0], targets_T) / dist.get_world_size()).backward()
    return logits_1TV.detach(), weight.grad


def test_gathered_logits_are_in_the_order_of_the_vocabulary(ranks):
    x_TD, weight_VD, targets_T = inputs(17)
    logits_TV = F.linear(x_TD, weight_VD.requires_grad_())
    F.cross_entropy(logits_TV, targets_T).backward()
    results = ranks.run(4, gathered_logits, 17)
    for logits_1TV, _ in results:
        torch.testing.assert_close(logits_1TV[0], logits_TV.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), weight_VD.grad, rtol=1e-12, atol=1e-14)


def refusals() -> list[str]:
    with pytest.raises(ValueError) as few_rows:
        VocabularyShard(9, dist.group.WORLD)
    with pytest.raises(ValueError) as odd_sequence:
        VocabularyShard(8, dist.group.WORLD).look_up(torch.zeros(1, 6, dtype=torch.long), torch.zeros(2, D))
    return [str(few_rows.value), str(odd_sequence.value)]


def test_sizes_that_cannot_be_split_are_refused(ranks):
    assert ranks.run(4, refusals)[0] == [
        "tp=4: the 9 vocabulary rows fill fewer parts of 3",
        "tp=4 must divide the sequence of 6 tokens that its ranks share",
    ]
