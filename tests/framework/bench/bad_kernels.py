"""Kernels that the gate must find. Run as a script it compiles them and prints what the gate says of each, in JSON."""

import json
import os
import sys

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"

import torch
import triton
import triton.language as tl


@triton.jit
def good(source, target, num_numbers, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place, mask=place < num_numbers, other=0.0), mask=place < num_numbers)


@triton.jit
def spilling(source, target, BLOCK: tl.constexpr):
    """Holds 256 numbers a thread in registers, of which there are 255."""
    rows, columns = tl.arange(0, BLOCK // 2), tl.arange(0, BLOCK)
    x = tl.load(source + rows[:, None] * BLOCK + columns[None, :])
    total = tl.sum(x, 1)
    tl.store(target + rows[:, None] * BLOCK + columns[None, :], x / total[:, None] + tl.sum(x, 0)[None, :])


@triton.jit
def copy_rows(source, target, stride, BLOCK: tl.constexpr):
    """Rows that begin anywhere, so that nothing is known to be aligned: 2 bytes at a time."""
    place = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place))


@triton.jit
def without_tensor_cores(left, right, target, BLOCK: tl.constexpr):
    """Tiles of 32 rows are too few for a warpgroup's instructions."""
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    x, y = tl.load(left + rows * BLOCK + columns), tl.load(right + rows * BLOCK + columns)
    tl.store(target + rows * BLOCK + columns, tl.dot(x, y))


@triton.jit
def greedy(left, right, target, num_steps, BLOCK: tl.constexpr):
    """Six pairs of 128 x 128 blocks wait in shared memory: 384 KB."""
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    place = rows * BLOCK + columns
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range(num_steps):
        offset = step * BLOCK * BLOCK
        total = tl.dot(tl.load(left + offset + place), tl.load(right + offset + place), total)
    tl.store(target + place, total.to(tl.bfloat16))


def launch_all() -> None:
    def tensor(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(2**20, device="meta", dtype=dtype)

    half, single = (tensor(torch.bfloat16), tensor(torch.bfloat16)), (tensor(torch.float32), tensor(torch.float32))
    good[(4,)](*half, 1000, 1024)
    spilling[(1,)](*single, 128, num_warps=1)
    copy_rows[(4,)](*half, 1001, 1024)
    without_tensor_cores[(1,)](*half, tensor(torch.float32), 32)
    greedy[(1,)](*half, tensor(torch.bfloat16), 32, 128, num_warps=8, num_stages=7)


def main() -> None:
    from framework.bench.kernels.compile import compile_launches
    from framework.bench.kernels.gate import faults
    from framework.bench.kernels.launches import distinct, recorded

    with recorded("here") as launches:
        launch_all()
    json.dump({row.kernel: faults(row) for row in compile_launches(distinct(launches)).rows}, sys.stdout)


if __name__ == "__main__":
    main()
