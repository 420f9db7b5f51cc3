"""Functions of local tensors. Knows no model and no process group."""

from kernels.cross_entropy import linear_cross_entropy
from kernels.moe.experts import expert_ffn
from kernels.rms_norm import rms_norm
from kernels.rotary import rotate_halves
from kernels.ssm.convolution import causal_convolution
from kernels.ssm.gated_norm import gated_rms_norm
from kernels.ssm.selective_scan import selective_scan, selective_step
from kernels.ssm.ssd import ssd, ssd_step

__all__ = [
    "causal_convolution", "expert_ffn", "gated_rms_norm", "linear_cross_entropy", "rms_norm", "rotate_halves",
    "selective_scan", "selective_step", "ssd", "ssd_step",
]
