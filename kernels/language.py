"""Triton, and the few functions that let one source run compiled on a GPU and interpreted on a CPU.

The interpreter (TRITON_INTERPRET=1) computes bfloat16 on raw bits and truncates where it rounds
(triton issue 11584), so kernels follow three rules: `widen` what is loaded before any arithmetic, multiply matrices
with `dot`, and `narrow` what is stored. Compiled, each costs nothing. A fourth: a mask is made of comparisons of
blocks, as the interpreter takes no scalar condition for a part of one; `tl.where` on the limit does as well.
"""

import os

try:
    import triton
    import triton.language as tl

    AVAILABLE = True
except ImportError:  # there is no Triton but for Linux; PyTorch's bodies remain
    from kernels.no_triton import tl, triton

    AVAILABLE = False

INTERPRETING = AVAILABLE and os.environ.get("TRITON_INTERPRET") == "1"
_INTERPRETING = tl.constexpr(INTERPRETING)


@triton.jit
def widen(x):
    """x in float32."""
    return x.to(tl.float32)


@triton.jit
def dot(left, right, sum):
    """sum + left @ right, accumulated in float32: on tensor cores for 16-bit operands, exact float32 for float32."""
    if _INTERPRETING:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), sum, input_precision="ieee")
    else:
        return tl.dot(left, right, sum, input_precision="ieee")


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 x in dtype, rounded to nearest, ties to even."""
    if _INTERPRETING and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x != x, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)
