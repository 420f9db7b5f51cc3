"""Small language models, and how what ranks make of them is compared with one rank."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from framework.model import LanguageModel, build_language_model
from framework.parametrization import initialize
from framework.parametrization.roles import Role, declarations
from framework.recipe.architecture import Architecture, architecture
from framework.recipe.schema import Init, Model

VOCAB = 43  # which no number of ranks divides
MOE = dict(num_experts=8, top_k=2, d_expert=8, load_balance_weight=0.1, z_loss_weight=0.01, num_shared_experts=1)
SMALL = dict(d_model=16, vocab_size=VOCAB, attention=dict(num_heads=4), moe=MOE, mamba=dict(head_dim=8, d_state=4))


def sizes(**fields) -> Architecture:
    """What SMALL describes once its fields are replaced by those given."""
    return architecture(Model(**SMALL | fields))


def build(**fields) -> LanguageModel:
    """The model of `sizes`, not initialised."""
    return build_language_model(sizes(**fields))


def initialized(dtype: torch.dtype = torch.float64, **fields) -> LanguageModel:
    """Norms, biases and skips differ between channels, so that a wrong channel shows."""
    model = build(**fields)
    initialize(model, Init(), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def roles_of(model: nn.Module) -> set[Role]:
    """The roles that a model's parameters have."""
    return {declaration.role for *_, declaration in declarations(model)}


def whole(tensor: Tensor) -> Tensor:
    """A DTensor's or a plain tensor's values, all of them. Collective."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def plain(name: str) -> str:
    """A parameter's name without what recomputation puts into it."""
    return name.replace("_checkpoint_wrapped_module.", "")


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Whole gradients by plain names. Collective."""
    return {plain(name): whole(parameter.grad) for name, parameter in model.named_parameters()}


def assert_near(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """The largest difference of each tensor, relative to its largest entry; stacks are compared expert by expert."""
    assert got.keys() == expected.keys()
    for name, reference in expected.items():
        pair = got[name], reference
        for mine, theirs in zip(*pair, strict=True) if ".experts." in name else [pair]:
            difference, scale = (mine - theirs).abs().max().item(), theirs.abs().max().item()
            assert scale > 0, f"{name} learns nothing, so nothing is compared"
            assert difference <= tolerance * scale, f"{name}: {difference:.2e} of {scale:.2e}"


def assert_same_step(got: tuple[float, dict], expected: tuple[float, dict]) -> None:
    """(loss, gradients) in float64."""
    assert got[0] == pytest.approx(expected[0], rel=1e-10)
    assert_near(got[1], expected[1])


@contextmanager
def log_of(name: str) -> Iterator[list[str]]:
    """What a logger says within the block."""
    lines, handler, logger = [], logging.Handler(), logging.getLogger(name)
    handler.emit = lambda record: lines.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
