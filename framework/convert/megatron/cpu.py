"""Megatron-Core's modules without a GPU: calls that assume one are replaced, for a process that does nothing else.

Models built of its own modules ("local" specifications) then load checkpoints and compute in float32 on one process.
"""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kernels import gated_rms_norm, ssd


def pretend_cuda() -> None:
    """Replace what Megatron-Core calls on a GPU. Before it is imported; what it then imports is changed for good."""
    cuda, cpu = torch.cuda, torch.device("cpu")
    cuda.current_device = lambda: cpu
    cuda.synchronize = cuda.empty_cache = lambda *args, **kwargs: None
    cuda.Stream = cuda.Event = _Nothing
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: _Nothing()
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.get_rng_state = lambda *args: torch.get_rng_state()
    cuda.manual_seed = torch.manual_seed
    Tensor.cuda = lambda self, *args, **kwargs: self
    Tensor.record_stream = lambda self, stream: None
    for name in ("zeros", "ones", "tensor", "empty", "empty_like", "arange"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.compile = lambda function=None, **options: function or (lambda inner: inner)  # nothing is worth compiling
    _put_mamba_ssm()
    import megatron.core.tensor_parallel.random as random
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    for name in ("te_general_gemm", "fused_permute", "fused_unpermute", "fused_topk_with_score_function"):
        if not hasattr(moe_utils, name):  # left undefined where Transformer Engine is not installed
            setattr(moe_utils, name, None)
    dispatcher.maybe_move_tensor_to_cpu = lambda tensor, as_numpy=False, record_stream=False: (
        tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor)


class _Nothing:
    """A stream or an event, where there is none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self


def _on_cpu(function: Any) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)

    return wrapped


class _GatedNorm(nn.Module):
    """mamba_ssm's gated norm, computed by ours."""

    def __init__(
        self, width: int, eps: float, group_size: int, norm_before_gate: bool, device: Any, dtype: torch.dtype
    ) -> None:
        super().__init__()
        assert not norm_before_gate
        self.eps, self.group_size = eps, group_size
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """[..., width] each."""
        return gated_rms_norm(y, z, self.weight, self.group_size, self.eps)


def _scan(
    x_BSHP: Tensor, dt_BSH: Tensor, A_H: Tensor, B_BSGN: Tensor, C_BSGN: Tensor, chunk_size: int, *, D: Tensor,
    dt_bias: Tensor, dt_softplus: bool, z: Tensor | None = None, **unused: Any,
) -> Tensor:
    """mamba_ssm's scan, computed by ours."""
    assert dt_softplus and z is None and not any(value is not None and value is not False for value in unused.values())
    return ssd(x_BSHP, nn.functional.softplus(dt_BSH + dt_bias), A_H, B_BSGN, C_BSGN, D, chunk_size)[0]


def _put_mamba_ssm() -> None:
    """Stand in for the two functions of mamba_ssm, of Triton alone, that MambaMixer calls."""
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = []
    norm, scan = (ModuleType(f"mamba_ssm.ops.triton.{name}") for name in ("layernorm_gated", "ssd_combined"))
    norm.RMSNorm = _GatedNorm
    scan.mamba_chunk_scan_combined, scan.mamba_split_conv1d_scan_combined = _scan, None
    sys.modules |= {module.__name__: module for module in (norm, scan)}
