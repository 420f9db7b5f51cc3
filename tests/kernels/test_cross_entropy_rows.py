"""Cross entropy of rows of logits in place, whole and in shards, and of chunks: Triton's bodies against float64.

R rows, V vocabulary, T tokens, D model width.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import cross_entropy, linear_cross_entropy
from kernels.cross_entropy_rows import IGNORED, RowLosses, cross_entropy_rows, shard_gradient, shard_statistics
from tests.helpers.kernels import check_kernel, poisoned, relative_error

DTYPES = [torch.float32, torch.bfloat16]


def inputs(num_rows: int, vocab_size: int, left_out: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Small, so that no target is all but certain: a loss near 0 is the logarithm of a sum near 1.
    logits_RV = 1.5 * torch.randn(num_rows, vocab_size, generator=generator, dtype=torch.float64)
    target_R = torch.randint(vocab_size, (num_rows,), generator=generator)
    target_R[0], target_R[-1] = 0, vocab_size - 1
    target_R[:left_out] = IGNORED
    return logits_RV, target_R


def reference(logits_RV: Tensor, target_R: Tensor, scale: float, z_loss_weight: float) -> tuple[Tensor, Tensor]:
    """Each row's loss and the gradient of their sum, by autograd over the formula."""
    logits_RV = logits_RV.detach().double().requires_grad_()
    with torch.enable_grad():
        scaled_RV = scale * logits_RV
        loss_R = F.cross_entropy(scaled_RV, target_R, reduction="none", ignore_index=IGNORED)
        loss_R = loss_R + z_loss_weight * scaled_RV.logsumexp(1).square() * (target_R != IGNORED)
        return loss_R.detach(), torch.autograd.grad(loss_R.sum(), logits_RV)[0]


def finished(losses: RowLosses) -> tuple[Tensor, Tensor]:
    return losses.loss_R, losses.gradient_RV if losses.factor_R1 is None else losses.gradient_RV * losses.factor_R1


def in_shards(logits_RV, target_R, scale, z_loss_weight, num_shards, backend) -> tuple[Tensor, Tensor]:
    """What the ranks of a vocabulary do, one after another."""
    shards = logits_RV.chunk(num_shards, 1)
    starts = [sum(shard.shape[1] for shard in shards[:place]) for place in range(len(shards))]
    known = [shard_statistics(shard.clone(), target_R, start, scale, backend)
             for shard, start in zip(shards, starts, strict=True)]
    statistics_S3R = torch.stack([statistics for statistics, _ in known])
    lse_R = (statistics_S3R[:, 0] + statistics_S3R[:, 1].log()).logsumexp(0)
    loss_R = lse_R - statistics_S3R[:, 2].sum(0) + z_loss_weight * lse_R.square()
    gradients = []
    for (statistics_3R, rest_RL), start in zip(known, starts, strict=True):
        gradient, factor = shard_gradient(
            rest_RL, target_R, start, statistics_3R, lse_R, scale, z_loss_weight, backend)
        gradients.append(gradient if factor is None else gradient * factor)
    return loss_R.masked_fill(target_R == IGNORED, 0.0), torch.cat(gradients, 1)


def check_rows(num_rows, vocab_size, dtype, scale=0.7, z_loss_weight=1e-2, left_out=0, seed=0, num_shards=0):
    logits_RV, target_R = inputs(num_rows, vocab_size, left_out, seed)
    logits_RV = logits_RV.to(dtype)
    with poisoned():
        for backend in ("triton", "torch"):
            if num_shards:
                got, again = (in_shards(logits_RV, target_R, scale, z_loss_weight, num_shards, backend)
                              for _ in range(2))
            else:
                got, again = (finished(cross_entropy_rows(
                    logits_RV.clone(), target_R, scale, z_loss_weight, backend=backend)) for _ in range(2))
            for value, second, expected, limit in zip(
                got, again, reference(logits_RV, target_R, scale, z_loss_weight),
                (1e-6, 1e-6 if dtype == torch.float32 else 5e-3), strict=True,
            ):
                assert torch.equal(value, second)
                assert relative_error(value, expected) <= limit, backend
            if backend == "triton":
                assert got[1].dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (7, 130), (3, 8192), (3, 20_001), (2, 262_144)], ids=str)
def test_rows_equal_float64(sizes, dtype):
    check_rows(*sizes, dtype, left_out=1 if sizes[0] > 2 else 0)


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_shards_equal_float64(num_shards):
    for dtype in DTYPES:
        check_rows(6, 1003, dtype, left_out=2, num_shards=num_shards)


@settings(max_examples=8, deadline=None)
@given(num_rows=st.integers(1, 9), vocab_size=st.integers(8, 300), scale=st.floats(0.1, 1.5),
       z_loss_weight=st.sampled_from([0.0, 1e-4, 0.1]), num_shards=st.integers(0, 3), data=st.data())
def test_any_sizes(num_rows, vocab_size, scale, z_loss_weight, num_shards, data):
    left_out = data.draw(st.integers(0, num_rows - 1))
    check_rows(num_rows, vocab_size, torch.float32, scale, z_loss_weight, left_out, 1, num_shards)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_left_out_gives_zeros_even_of_nan(dtype):
    logits_RV = torch.full((3, 9000), float("nan"), dtype=dtype)
    losses = cross_entropy_rows(logits_RV, torch.full((3,), IGNORED), 2.0, 0.1, backend="triton")
    assert not losses.loss_R.any() and not losses.gradient_RV.any()


def test_rows_of_wider_memory_leave_what_is_beside_them():
    """Every second row of a buffer with padding, in the middle of other numbers."""
    logits_RV, target_R = inputs(4, 50)
    buffer = torch.full((8, 56), 7.0)
    view_RV = buffer[::2, 1:51]
    view_RV.copy_(logits_RV)
    loss_R = cross_entropy_rows(view_RV, target_R, backend="triton").loss_R
    expected_loss_R, expected_RV = reference(logits_RV.float(), target_R, 1.0, 0.0)
    assert relative_error(loss_R, expected_loss_R) <= 1e-6 and relative_error(view_RV, expected_RV) <= 1e-6
    buffer[::2, 1:51] = 7.0
    assert (buffer == 7.0).all()


def test_large_logits_neither_overflow_nor_lose_small_losses():
    """The loss of 4.5e-5 is as exact as the sum of exponentials, near 1; numbers near 30,000 are 0.002 apart."""
    logits_RV = torch.tensor([[30_000.0, 29_990.0, -30_000.0]])
    for target, allowed in ((0, 2**-23), (2, 1e-4)):
        target_R = torch.tensor([target])
        loss_R = cross_entropy_rows(logits_RV.clone(), target_R, backend="triton").loss_R
        assert (loss_R - reference(logits_RV, target_R, 1.0, 0.0)[0]).abs() <= allowed


def test_a_target_outside_the_vocabulary_shows():
    logits_RV, _ = inputs(3, 10)
    loss_R = cross_entropy_rows(logits_RV.float(), torch.tensor([10, -1, 3]), backend="triton").loss_R
    assert loss_R.isnan().tolist() == [True, True, False]


def test_without_gradient_the_logits_stay():
    logits_RV, target_R = inputs(3, 9000)
    logits_RV = logits_RV.float()
    losses = cross_entropy_rows(given := logits_RV.clone(), target_R, needs_gradient=False, backend="triton")
    assert torch.equal(given, logits_RV)
    assert relative_error(losses.loss_R, reference(logits_RV, target_R, 1.0, 0.0)[0]) <= 1e-6


@pytest.mark.parametrize("as_on_a_gpu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 4, 9), (21, 16, 101)], ids=str)
def test_linear_equals_float64(sizes, dtype, as_on_a_gpu, monkeypatch):
    """In chunks of four tokens, the last of one; logits near 1, as their own rounding to 16 bits counts as well.

    On a GPU products are wider than the vocabulary.
    """
    num_tokens, d_model, vocab_size = sizes
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 4 * vocab_size)
    if as_on_a_gpu:
        monkeypatch.setattr(cross_entropy, "product_width", lambda x, num_logits: -(-num_logits // 16) * 16)
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(num_tokens, d_model, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(vocab_size, d_model, generator=generator, dtype=torch.float64) / d_model**0.5
    targets_T = torch.randint(vocab_size, (num_tokens,), generator=generator)
    targets_T[1:3] = IGNORED

    def whole(x_TD, weight_VD, targets_T):
        logits_TV = 1.3 * x_TD @ weight_VD.t()
        z_loss = 1e-2 * (logits_TV.logsumexp(1).square() * (targets_T != IGNORED)).sum()
        return F.cross_entropy(logits_TV, targets_T, reduction="sum", ignore_index=IGNORED) + z_loss

    for backend in ("triton", "torch"):
        for precise in ([], [1]):
            check_kernel(lambda x, weight, targets, backend=backend: linear_cross_entropy(
                x, weight, targets, 1.3, 1e-2, backend), whole, [x_TD, weight_VD, targets_T], dtype, precise)


def test_the_compiler_takes_it_whole_and_meta_tensors_pass():
    logits_RV, target_R = inputs(6, 40)
    x_TD = torch.randn(6, 8, requires_grad=True)

    def loss_of(x_TD, weight_VD, targets_T):
        return linear_cross_entropy(x_TD, weight_VD, targets_T, 1.3, 1e-2, "triton")

    weight_VD = logits_RV[:, :8].float().repeat(7, 1).requires_grad_()
    expected = torch.autograd.grad(loss_of(x_TD, weight_VD, target_R), (x_TD, weight_VD))
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    got = torch.autograd.grad(compiled(x_TD, weight_VD, target_R), (x_TD, weight_VD))
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    on_meta = [tensor.detach().to("meta").requires_grad_(tensor.is_floating_point())
               for tensor in (x_TD, weight_VD, target_R)]
    loss_of(*on_meta).backward()
    assert on_meta[0].grad.shape == x_TD.shape and on_meta[1].grad.shape == weight_VD.shape
