"""Small random models, straight from the fields of a recipe's model section."""

import pytest
import torch

from framework.model import LanguageModel, build_language_model
from framework.parametrization import initialize
from framework.recipe.architecture import architecture
from framework.recipe.schema import Init, Model


def _random_model(seed: int = 0, dtype: torch.dtype = torch.float32, **fields) -> LanguageModel:
    model = build_language_model(architecture(Model(**{"d_model": 32, "vocab_size": 61, **fields})))
    initialize(model, Init(), seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms and biases that are not neutral, so that leaving one out shows.
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.to(dtype)


@pytest.fixture(scope="session")
def random_model():
    """random_model(seed, dtype, **model fields) -> an initialised LanguageModel in training mode."""
    return _random_model
