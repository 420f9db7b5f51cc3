"""The unembedding's loss: rows of logits, whole or one rank's part of a vocabulary, and the chunked head.

T tokens, D model width, V vocabulary, L of it on one rank.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.bench.kernels.case import Arguments, Case, Work
from kernels.cross_entropy import linear_cross_entropy
from kernels.cross_entropy_rows import cross_entropy_rows, shard_gradient, shard_statistics

Z_LOSS_WEIGHT = 1e-4


@dataclass(frozen=True)
class Head:
    num_tokens: int
    vocab_size: int
    d_model: int = 2048

    def __str__(self) -> str:
        return f"T={self.num_tokens} V={self.vocab_size}"


HEADS = (Head(32768, 50304), Head(16384, 131072), Head(8192, 50257))
SHARD = Head(8192, 32768)
"""A quarter of 131072."""


def cases() -> list[Case]:
    return [*(head_case(head) for head in HEADS), *(rows_case(head) for head in HEADS), shard_case(SHARD)]


def rows_work(head: Head) -> Work:
    """A row is read twice and written once, 2 bytes a logit: 6 T V."""
    return Work("rows", 0, 6 * head.num_tokens * head.vocab_size)


def head_work(head: Head) -> tuple[Work, ...]:
    """Three products of 2 T D V operations around the rows' pass; each reads and writes its operands once: logits and
    matrices at 2 bytes, the weight's gradient at 4."""
    num_tokens, vocab_size, d_model = head.num_tokens, head.vocab_size, head.d_model
    flops, tall, wide = 2 * num_tokens * d_model * vocab_size, 2 * num_tokens * d_model, 2 * num_tokens * vocab_size
    matrix = 2 * d_model * vocab_size
    return (
        Work("logits", flops, tall + matrix + wide), rows_work(head), Work("dx", flops, wide + matrix + tall),
        Work("dweight", flops, wide + tall + 2 * matrix),
    )


def head_case(head: Head) -> Case:
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        num_tokens, width = num_tokens or head.num_tokens, head.d_model
        x_TD = torch.randn(num_tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        weight_VD = torch.randn(head.vocab_size, width, device=device, dtype=torch.bfloat16) / width**0.5
        return x_TD, weight_VD.requires_grad_(), _targets(num_tokens, head.vocab_size, device)

    def run(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        return linear_cross_entropy(x_TD, weight_VD, target_T, 1.0, Z_LOSS_WEIGHT)

    def whole(x_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        """All logits, in float32, as PyTorch has it; without the z-loss."""
        return F.cross_entropy(F.linear(x_TD, weight_VD).float(), target_T, reduction="sum")

    return Case("linear_cross_entropy", f"{head} D={head.d_model}", arguments, run, head_work(head),
                peers={"F.cross_entropy of all logits": whole}, gradients_in_forward=True)


def rows_case(head: Head) -> Case:
    def run(logits_RV: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
        losses = cross_entropy_rows(logits_RV, target_R, 1.0, Z_LOSS_WEIGHT)
        if losses.factor_R1 is None:
            return losses.loss_R, losses.gradient_RV
        return losses.loss_R, losses.gradient_RV * losses.factor_R1

    def unfused(logits_RV: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
        logits_RV = logits_RV.detach().requires_grad_()
        loss_R = F.cross_entropy(logits_RV.float(), target_R, reduction="none")
        return loss_R, torch.autograd.grad(loss_R.sum(), logits_RV)[0]

    return Case("cross_entropy_rows", str(head), lambda device, rows: _logits(head, device, rows), run,
                (rows_work(head),), peers={"F.cross_entropy": unfused})


def shard_case(head: Head) -> Case:
    """The largest and the sum of a row in one pass (2 T L bytes), the gradient in another (4 T L)."""
    def run(logits_RL: Tensor, target_R: Tensor) -> tuple[Tensor, Tensor]:
        start = head.vocab_size
        statistics_3R, logits_RL = shard_statistics(logits_RL, target_R, start)
        lse_R = statistics_3R[0] + statistics_3R[1].log() + 1
        gradient, factor = shard_gradient(logits_RL, target_R, start, statistics_3R, lse_R, 1.0, Z_LOSS_WEIGHT)
        return statistics_3R, gradient if factor is None else gradient * factor

    size = head.num_tokens * head.vocab_size
    return Case("cross_entropy of a shard", str(head).replace("V", "L"),
                lambda device, rows: _logits(head, device, rows), run,
                (Work("statistics", 0, 2 * size), Work("gradient", 0, 4 * size)))


def _logits(head: Head, device: torch.device, num_rows: int | None) -> Arguments:
    num_rows = num_rows or head.num_tokens
    # Rows as the head has them: each begins at a multiple of 32 bytes.
    buffer = torch.randn(num_rows, -(-head.vocab_size // 16) * 16, device=device, dtype=torch.bfloat16)
    return buffer[:, : head.vocab_size], _targets(num_rows, head.vocab_size, device)


def _targets(num_tokens: int, vocab_size: int, device: torch.device) -> Tensor:
    return torch.randint(vocab_size, (num_tokens,), device=device)
