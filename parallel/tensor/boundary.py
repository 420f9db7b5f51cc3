"""What happens to the activations where a module of split width meets sequence shards (https://arxiv.org/abs/2205.05198).

B batch, S sequence of a rank, D model width, R ranks. Each is a hook on the module, so that recomputing the module or
compiling it takes the collective along.
"""

import torch.distributed as dist
from torch import Tensor, nn

from parallel.collectives import all_gather, all_reduce, reduce_scatter

SEQUENCE_DIM = 1


def gather_input(module: nn.Module, group: dist.ProcessGroup) -> None:
    """The module's first positional argument, [B, S, D] outside, is [B, R*S, D] inside: all ranks' tokens.

    Backward: gradients of the ranks, each made by a part of the module's width, are summed and scattered.
    """

    def before(module: nn.Module, inputs: tuple) -> tuple:
        x_BSD, *others = inputs
        return all_gather(x_BSD, SEQUENCE_DIM, group), *others

    module.register_forward_pre_hook(before)


def scatter_output(module: nn.Module, group: dist.ProcessGroup) -> None:
    """The output, on each rank a term [B, R*S, D] of a sum, becomes that rank's tokens [B, S, D] of the sum."""

    def after(module: nn.Module, inputs: tuple, output_BSD: Tensor) -> Tensor:
        return reduce_scatter(output_BSD, SEQUENCE_DIM, group)

    module.register_forward_hook(after)


def sum_output(module: nn.Module, group: dist.ProcessGroup) -> None:
    """The output, on each rank a term of a sum, becomes the sum, which each rank uses for its own part.

    Backward: the ranks' gradients are summed too, since each part gives a term of the whole.
    """

    def after(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return all_reduce(output, group)

    module.register_forward_hook(after)
