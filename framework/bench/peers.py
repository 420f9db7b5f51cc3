"""The frameworks that a recipe can be compared with, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.bench import huggingface
from framework.bench.peer import Peer

if TYPE_CHECKING:
    import torch

    from framework.recipe import Loaded


def hugging_face(loaded: Loaded, device: torch.device) -> Peer:
    """The recipe in transformers. Raises UserError as `huggingface.twin` does."""
    return Peer(loaded, huggingface.twin(loaded), huggingface.loss, "transformers", device)


def megatron(loaded: Loaded, device: torch.device) -> Peer:
    """The recipe in megatron-core. Raises UserError as `megatron.megatron_model` does."""
    from framework.bench.megatron import loss, megatron_model

    return Peer(loaded, megatron_model(loaded, device), loss, "megatron-core", device)


PEERS = {"hf": hugging_face, "megatron": megatron}
