"""Weights and moments of the target, made of the dense run's on the ranks of the target's layout.

A rank holds its part of the target. What goes over as it is, it reads part by part into place; of a dense block's
matrices that it makes experts of it reads one at a time, and only those whose experts it holds a part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.parametrization.roles import declarations
from framework.parametrization.shards import Shards
from framework.surgery.randomness import generator
from framework.surgery.reader import SourceReader
from framework.surgery.routers import uniform, virtual_groups
from framework.surgery.rules import Copied, Made, Rule, Uniform, VirtualGroups, Zeros
from framework.training.checkpoint.state import buffer_tensors

Plan = dict[str, Rule]


@torch.no_grad()
def fill_weights(model: nn.Module, plan: Plan, reader: SourceReader) -> None:
    """Fill a model that the recipe's rule has initialised, in place. Collective over the ranks that hold it."""
    parameters = _named(model)
    copied = {name: rule for name, rule in plan.items() if name in parameters and isinstance(rule, Copied)}
    buffers = {name: buffer for name, buffer in buffer_tensors(model).items() if name in reader.stored}
    reader.parts({f"model.{rule.source}": parameters[name] for name, rule in copied.items()} | buffers)
    for name, rule in copied.items():
        _multiply(parameters[name], rule.factor)
    for name, parameter in parameters.items():
        _start_router(parameter, plan[name])
    for name, rule in _made(plan, parameters):
        _make(parameters[name], rule, reader, f"model.{rule.source}", rule.weight)


@torch.no_grad()
def fill_moments(model: nn.Module, optimizer: torch.optim.AdamW, plan: Plan, reader: SourceReader) -> None:
    """Carry AdamW's state over, in place: first moments are linear in gradients, second ones quadratic (see `Made`).

    What is made of nothing in the dense run (routers) keeps a state of zeros. Collective as `fill_weights`.
    """
    parameters = _named(model)
    known = {name: rule for name, rule in plan.items()
             if name in parameters and isinstance(rule, Copied | Made)}
    steps = {f"optim.{rule.source}.step": torch.zeros(()) for rule in known.values()}
    for power, moment in ((1, "exp_avg"), (2, "exp_avg_sq")):
        tensors = {name: optimizer.state[parameters[name]][moment] for name in known}
        copied = {name: rule for name, rule in known.items() if isinstance(rule, Copied)}
        reader.parts({f"optim.{rule.source}.{moment}": tensors[name] for name, rule in copied.items()})
        for name, rule in copied.items():
            _multiply(tensors[name], rule.moment_factor**power)
        for name, rule in _made(plan, parameters):
            _make(tensors[name], rule, reader, f"optim.{rule.source}.{moment}", partial(rule.moment, power=power))
    reader.parts(steps)
    for name, rule in known.items():
        optimizer.state[parameters[name]]["step"].copy_(steps[f"optim.{rule.source}.step"])


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: module.get_parameter(local) for name, module, local, _ in declarations(model)}


def _made(plan: Plan, parameters: dict[str, nn.Parameter]) -> Iterator[tuple[str, Made]]:
    """Those of this rank, so that what is made of one matrix comes together."""
    rules = [(name, plan[name]) for name in parameters if isinstance(plan[name], Made)]
    return iter(sorted(rules, key=lambda entry: entry[1].source))


def _make(
    tensor: Tensor, rule: Made, reader: SourceReader, key: str, make: Callable[[Tensor, int], Tensor]
) -> None:
    """Fill the part of a made tensor that this rank holds, one expert at a time."""
    shards = Shards(tensor)
    if shards.local.numel() == 0:
        return
    matrix = reader.whole(key)
    if not rule.stacked:
        shards.local.copy_(shards.select(make(matrix, 0)))
        return
    for position, expert in enumerate(shards.indices[0].tolist()):
        shards.local[position].copy_(shards.select(make(matrix, expert), first_dim=1))


def _start_router(parameter: nn.Parameter, rule: Rule) -> None:
    if isinstance(rule, Zeros):
        Shards(parameter).local.zero_()
    elif isinstance(rule, Uniform):
        _set(parameter, uniform(parameter.shape, generator(rule.seed, rule.name, "uniform")))
    elif isinstance(rule, VirtualGroups):
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        _set(parameter, virtual_groups(whole.detach().cpu(), rule.granularity))


def _set(parameter: nn.Parameter, whole: Tensor) -> None:
    shards = Shards(parameter)
    if shards.local.numel():
        shards.local.copy_(shards.select(whole))


def _multiply(tensor: Tensor, factor: float) -> None:
    if factor != 1.0:
        Shards(tensor).local.mul_(factor)
