"""State-space blocks: Mamba-2's scan, Mamba-1's, the convolution before them and the gated norm after.

B batch, S sequence, H heads, G groups, P head width, N state, I channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from framework.bench.kernels import peers
from framework.bench.kernels.case import Arguments, Case, Work
from kernels.ssm.convolution import causal_convolution
from kernels.ssm.gated_norm import gated_rms_norm
from kernels.ssm.selective_scan import selective_scan
from kernels.ssm.ssd import ssd

CHUNK, KEPT_EVERY = 64, 256
"""Tokens of a chunk, and between states that a forward keeps, in the floor."""
NUM_TAPS = 4


@dataclass(frozen=True)
class Scan:
    """Of Mamba-2."""

    batch: int
    seq_len: int
    num_heads: int
    num_groups: int = 1
    head_dim: int = 64
    d_state: int = 128

    def __str__(self) -> str:
        return (f"B={self.batch} S={self.seq_len} H={self.num_heads} G={self.num_groups} P={self.head_dim} "
                f"N={self.d_state}")


@dataclass(frozen=True)
class Channels:
    """Of a convolution, a gated norm or Mamba-1."""

    batch: int
    seq_len: int
    num_channels: int
    extra: int = 1

    @property
    def size(self) -> int:
        return self.batch * self.seq_len * self.num_channels


SCANS = (Scan(8, 4096, 80), Scan(2, 4096, 24), Scan(4, 8192, 64, num_groups=8))
SELECTIVE = (Channels(8, 2048, 4096, 16),)
CONVOLUTIONS = (Channels(16, 4096, 5376), Channels(8, 2048, 4096))
COMPILED_SCANS = (Scan(8, 4096, 80, d_state=256), Scan(8, 4096, 40, head_dim=128), Scan(2, 4096, 12, 1, 128, 256))
"""Wider heads and states, which are compiled and not timed."""
NORMS = (Channels(8, 4096, 5120, 5120), Channels(8, 4096, 4096, 512))


def cases() -> list[Case]:
    return [
        *(ssd_case(scan) for scan in SCANS), *(selective_case(channels) for channels in SELECTIVE),
        *(convolution_case(channels) for channels in CONVOLUTIONS), *(norm_case(channels) for channels in NORMS),
        ssd_case(SCANS[0], continued=True), ssd_case(SCANS[1], continued=True),
        *(ssd_case(scan, is_timed=False) for scan in COMPILED_SCANS),
        *(ssd_case(scan, is_timed=False, dtype=torch.float32) for scan in (SCANS[1], COMPILED_SCANS[2])),
        selective_case(SELECTIVE[0], continued=True), selective_case(Channels(8, 2048, 4096, 64), is_timed=False),
        convolution_case(CONVOLUTIONS[0], continued=True),
    ]


def ssd_work(scan: Scan) -> tuple[Work, Work]:
    """Forward with the state carried from chunk to chunk: per token H (2 Q P + 4 P N) + 2 Q N G operations; x and y at
    2 bytes, dt at 4, B and C once for each group, and a state every 256 tokens.

    Backward: twice the operations, and those of the forward again; x, dy and dx, dt and its gradient, B and C and
    theirs, and the states read.
    """
    num_tokens, heads = scan.batch * scan.seq_len, scan.num_heads
    inner, states = heads * scan.head_dim, 2 * heads * scan.head_dim * scan.d_state / KEPT_EVERY
    vectors = 2 * 2 * scan.num_groups * scan.d_state
    flops = num_tokens * (
        heads * (2 * CHUNK * scan.head_dim + 4 * scan.head_dim * scan.d_state)
        + 2 * CHUNK * scan.d_state * scan.num_groups)
    return (
        Work("forward", flops, num_tokens * (2 * 2 * inner + 4 * heads + vectors + states)),
        Work("backward", 3 * flops, num_tokens * (3 * 2 * inner + 2 * 4 * heads + 2 * vectors + states)),
    )


def ssd_case(
    scan: Scan, continued: bool = False, is_timed: bool = True, dtype: torch.dtype = torch.bfloat16
) -> Case:
    """continued: of several documents, with a state from before, and not timed."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        batch, seq_len = (1, num_tokens) if num_tokens else (scan.batch, scan.seq_len)
        shape, vectors = (batch, seq_len, scan.num_heads), (batch, seq_len, scan.num_groups, scan.d_state)
        def randn(*size: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(size, device=device, dtype=dtype)

        state = (randn(batch, scan.num_heads, scan.head_dim, scan.d_state, dtype=torch.float32).requires_grad_()
                 if continued else None)
        return (
            randn(*shape, scan.head_dim).requires_grad_(), _time_steps(*shape, device=device),
            -torch.arange(1.0, scan.num_heads + 1, device=device).requires_grad_(),
            randn(*vectors).requires_grad_(), randn(*vectors).requires_grad_(),
            randn(scan.num_heads, dtype=torch.float32).requires_grad_(), CHUNK,
            _documents(batch, seq_len, device) if continued else None, state,
        )

    forward, backward = ssd_work(scan)
    detail = " documents, state" if continued else "" if dtype == torch.bfloat16 else " float32"
    return Case(
        "ssd", f"{scan}{detail}", arguments, ssd, (forward,), (backward,), {} if continued else peers.ssd(),
        timed=is_timed and not continued,
    )


def selective_case(channels: Channels, continued: bool = False, is_timed: bool = True) -> Case:
    """B S I N exponentials of decays, and in the backward as many again, by which it is bound; x, dt, y and B, C
    forward; those, dy and their gradients backward."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        batch, seq_len = (1, num_tokens) if num_tokens else (channels.batch, channels.seq_len)
        shape, d_state = (batch, seq_len, channels.num_channels), channels.extra
        A_IN = -torch.arange(1.0, d_state + 1, device=device).expand(channels.num_channels, -1).contiguous()
        state = torch.randn(batch, channels.num_channels, d_state, device=device).requires_grad_()
        return (
            _leaf(shape, device), _time_steps(*shape, device=device, dtype=torch.bfloat16), A_IN.requires_grad_(),
            _leaf((batch, seq_len, d_state), device), _leaf((batch, seq_len, d_state), device),
            torch.ones(channels.num_channels, device=device).requires_grad_(), CHUNK,
            _documents(batch, seq_len, device) if continued else None, state if continued else None,
        )

    vectors, decays = 2 * 2 * channels.batch * channels.seq_len * channels.extra, channels.size * channels.extra
    return Case(
        "selective_scan", f"{_shape(channels)} N={channels.extra}{' documents, state' if continued else ''}", arguments,
        selective_scan, (Work("forward", 0, 6 * channels.size + vectors, decays),),
        (Work("backward", 0, 10 * channels.size + 2 * vectors, decays),), {} if continued else peers.selective_scan(),
        timed=is_timed and not continued, check_tokens=300,
    )


def convolution_case(channels: Channels, continued: bool = False) -> Case:
    """x and y forward, 4 bytes a number; x, dy and dx backward, 6."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        batch, seq_len = (1, num_tokens) if num_tokens else (channels.batch, channels.seq_len)
        tail = _leaf((batch, NUM_TAPS - 1, channels.num_channels), device) if continued else None
        return (
            _leaf((batch, seq_len, channels.num_channels), device),
            torch.randn(channels.num_channels, NUM_TAPS, device=device).requires_grad_(),
            torch.randn(channels.num_channels, device=device).requires_grad_(),
            _documents(batch, seq_len, device) if continued else None, tail,
        )

    return Case(
        "causal_convolution", f"{_shape(channels)}{' documents, tail' if continued else ''}", arguments,
        causal_convolution, (Work("forward", 0, 4 * channels.size),), (Work("backward", 0, 6 * channels.size),),
        {} if continued else {"F.conv1d and F.silu": _conv1d} | peers.causal_convolution(), timed=not continued,
    )


def norm_case(channels: Channels) -> Case:
    """y, z and the result forward, 6 bytes a number; y, z, dout, dy and dz backward, 10."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        shape = (num_tokens or channels.batch * channels.seq_len, channels.num_channels)
        weight_I = torch.randn(channels.num_channels, device=device).requires_grad_()
        return _leaf(shape, device), _leaf(shape, device), weight_I, channels.extra, 1e-5

    return Case(
        "gated_rms_norm", f"R={channels.batch * channels.seq_len} I={channels.num_channels} W={channels.extra}",
        arguments, gated_rms_norm, (Work("forward", 0, 6 * channels.size),), (Work("backward", 0, 10 * channels.size),),
        {"F.silu and F.rms_norm": _unfused_norm} | peers.gated_rms_norm(),
    )


def _conv1d(x_BSC: Tensor, weight_CK: Tensor, bias_C: Tensor, *_: object) -> Tensor:
    num_taps, dtype = weight_CK.shape[1], x_BSC.dtype
    x_BCS = F.pad(x_BSC.mT, (num_taps - 1, 0))
    return F.silu(F.conv1d(x_BCS, weight_CK[:, None].to(dtype), bias_C.to(dtype), groups=x_BSC.shape[2])).mT


def _unfused_norm(y: Tensor, z: Tensor, weight_I: Tensor, group_size: int, eps: float) -> Tensor:
    gated = (y * F.silu(z)).unflatten(-1, (-1, group_size))
    return F.rms_norm(gated, (group_size,), eps=eps).flatten(-2) * weight_I.to(y.dtype)


def _shape(channels: Channels) -> str:
    return f"B={channels.batch} S={channels.seq_len} I={channels.num_channels}"


def _leaf(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_()


def _time_steps(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Between 0.001 and 0.1, as blocks begin with."""
    return (10 ** (-1 - 2 * torch.rand(shape, device=device))).to(dtype).requires_grad_()


def _documents(batch: int, seq_len: int, device: torch.device) -> Tensor:
    """About a thousand tokens each."""
    return (torch.arange(seq_len, device=device) // 1000).expand(batch, -1).contiguous()
